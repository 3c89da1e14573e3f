"""A killed training continues bit for bit: every schedule, in the middle of a pass, with hooks that learn."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lessen.errors import ArtifactError
from lessen.train.fit import fit
from lessen.train.hooks import Hook
from lessen.train.settings import FitSettings
from small_training import Small, batches, loss, same, small, validate


class Killed(Exception):
    pass


class Dies(Hook):
    """Ends the training in the middle of its work."""

    def __init__(self, step: int) -> None:
        self.step = step

    def before_step(self, model: nn.Module, step: int) -> None:
        if step == self.step:
            raise Killed


class Hint(Hook):
    """Learns a projection beside the model."""

    def start(self, model: nn.Module) -> None:
        self.module = nn.Sequential(nn.Linear(4, 1), nn.BatchNorm1d(1))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], loss: Tensor) -> Tensor:
        assert self.module is not None
        found = self.module(model.table(batch[0])).squeeze(1)  # type: ignore[operator]
        return loss + (found - batch[1]).square().mean()


SETTINGS = {
    "plateau": FitSettings(epochs=6, patience=9, plateau_factor=0.5),
    "constant": FitSettings(epochs=6, schedule="constant", warmup_steps=10, patience=9, optimizer="sgd"),
    "cosine": FitSettings(epochs=6, schedule="cosine", warmup_steps=4, patience=9, optimizer="adamw"),
    "linear": FitSettings(steps=23, schedule="linear", decay_steps=9, patience=9, keep="last"),
    "muon": FitSettings(epochs=6, schedule="cosine", optimizer="muon", patience=9, weight_decay=0.1),
    "in the middle of a pass": FitSettings(
        steps=19, steps_per_epoch=3, accumulate=3, schedule="cosine", patience=None, precision="bf16"
    ),
    "lazy tables": FitSettings(epochs=6, accumulate=3, patience=9, table_updates="lazy-adam", table_l2=1e-3),
}


def train(model: nn.Module, settings: FitSettings, checkpoint: Path | None = None, hooks: tuple[Hook, ...] = ()):
    return fit(
        model,
        batches=batches,
        loss=loss,
        validate=validate,
        settings=settings,
        seed=1,
        checkpoint=checkpoint,
        hooks=hooks,
    )


@pytest.mark.parametrize("kill", [1, 4, 11])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_killed_training_continues_bit_for_bit(name: str, kill: int, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS[name], learning_rate=0.03)
    whole, path = small(), tmp_path / "state"
    expected = train(whole, settings, hooks=(Hint(),))
    with pytest.raises(Killed):
        train(small(), settings, path, (Hint(), Dies(kill)))
    assert path.exists() == (kill > (settings.steps_per_epoch or -(-4 // settings.accumulate)))
    resumed = small(9) if path.exists() else small()
    found = train(resumed, settings, path, (Hint(),))
    assert same(whole, resumed)
    kept = ("best_score", "best_epoch", "epochs", "steps", "examples")
    assert [getattr(found, name) for name in kept] == [getattr(expected, name) for name in kept]
    assert [e["loss"] for e in found.history] == [e["loss"] for e in expected.history]


def test_a_constant_part_can_be_lengthened_and_a_fall_cannot(tmp_path: Path) -> None:
    def settings(epochs: int) -> FitSettings:
        return FitSettings(epochs=epochs, schedule="linear", decay_steps=8, patience=None, keep="last")

    class KeepsConstantPart(Hook):
        def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:
            if epoch == 3:  # of 4, whose last 2 fall
                (tmp_path / "constant").write_bytes((tmp_path / "state").read_bytes())

    train(small(), settings(4), tmp_path / "state", (KeepsConstantPart(),))
    with pytest.raises(ArtifactError, match="written while the learning rate fell, in steps 8 to 16"):
        train(small(), settings(6), tmp_path / "state")
    direct, longer = small(), small(3)
    train(direct, settings(6))
    train(longer, settings(6), tmp_path / "constant")
    assert same(direct, longer)


def test_a_higher_cap_of_steps_continues_where_the_last_pass_stopped(tmp_path: Path) -> None:
    def settings(steps: int) -> FitSettings:
        return FitSettings(steps=steps, schedule="constant", patience=None, keep="last")

    for short in (2, 4, 6):
        path, whole, parts = tmp_path / str(short), small(), small()
        train(whole, settings(9))
        train(parts, settings(short), path)
        train(parts, settings(9), path)
        assert same(whole, parts), short


def test_frozen_parameters_are_not_saved_and_must_be_the_same(tmp_path: Path) -> None:
    def frozen(seed: int) -> Small:
        model = small(seed)
        model.table.requires_grad_(False)
        return model

    path, settings = tmp_path / "state", FitSettings(epochs=2)
    train(frozen(0), settings, path)
    assert b"model/deep.weight" in path.read_bytes()
    assert b"model/table.weight" not in path.read_bytes()
    assert b"best/table.weight" not in path.read_bytes()
    assert b"best/norm.running_mean" in path.read_bytes()
    with pytest.raises(ArtifactError, match="frozen parameters differ"):
        train(frozen(1), settings, path)
    whole, parts = frozen(0), frozen(0)
    train(whole, FitSettings(epochs=4))
    train(parts, FitSettings(epochs=4), path)
    assert same(whole, parts)


def test_a_checkpoint_with_other_hooks_is_refused(tmp_path: Path) -> None:
    train(small(), FitSettings(epochs=1), tmp_path / "state", (Hint(),))
    with pytest.raises(ArtifactError, match=r"other hooks|the unknown tensor|differs"):
        train(small(), FitSettings(epochs=2), tmp_path / "state")


class Channels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, ids: Tensor) -> Tensor:
        images = ids.float().view(-1, 1, 1, 1) / 20 * torch.arange(48.0).view(3, 4, 4).sin()
        return self.net(images.contiguous(memory_format=torch.channels_last)).squeeze(1)


def test_weights_that_lie_in_another_order_in_memory_resume_as_well(tmp_path: Path) -> None:
    settings = FitSettings(epochs=5, learning_rate=0.03, patience=None)
    torch.manual_seed(0)
    whole = Channels()
    parts, other = copy.deepcopy(whole), copy.deepcopy(whole)
    train(whole, settings)
    train(parts, dataclasses.replace(settings, epochs=2), tmp_path / "state")
    train(other, settings, tmp_path / "state")
    assert same(whole, other)
