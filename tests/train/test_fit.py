from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lessen.errors import ArtifactError, NonFiniteError, TaskError
from lessen.log import Log
from lessen.train.fit import fit
from lessen.train.hooks import Hook
from lessen.train.settings import FitSettings
from small_training import batches, loss, small, validate


def test_learns_and_returns_the_best_epoch_in_eval_mode() -> None:
    model = small()
    before = validate(model)
    result = fit(model, batches=batches, loss=loss, validate=validate, settings=FitSettings(learning_rate=0.05))
    assert not model.training
    assert result.best_score > before
    assert validate(model) == result.best_score
    assert result.best_score == max(entry["score"] for entry in result.history)
    assert result.steps == 4 * result.epochs


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "muon"])
def test_tables_that_ask_for_sparse_gradients_train_as_dense_ones_do(optimizer: str) -> None:
    """Their own flag, or a call of torch's function: the rules of dense updates took neither, with torch's words."""

    class Net(nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            self.sparse = sparse
            torch.manual_seed(1)
            self.table, self.own = nn.Embedding(9, 4, sparse=sparse, padding_idx=0), nn.Parameter(torch.randn(9, 4))
            self.hidden, self.out = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, ids: Tensor) -> Tensor:
            rows = self.table(ids) + nn.functional.embedding(ids, self.own, sparse=self.sparse)
            return self.out(self.hidden(rows).tanh()).squeeze(-1)

    ids = torch.tensor([0, 1, 1, 5, 8])
    trained = []
    for sparse in (False, True):
        model = Net(sparse)
        fit(
            model, batches=lambda _: [ids] * 2, loss=lambda model, batch: (model(batch) - 1).square().mean(),
            validate=lambda model: -(model(ids) - 1).square().mean().item(),
            settings=FitSettings(optimizer=optimizer, epochs=2, clip_norm=0.5, table_l2=0.01),
        )  # fmt: skip
        assert model.table.sparse is sparse
        trained.append(model.state_dict())
    for name, dense in trained[0].items():
        torch.testing.assert_close(trained[1][name], dense)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_one_step_equals_the_textbook_update(optimizer: str) -> None:
    """One batch, one epoch: gradient of loss + lambda/2 |V|^2, clipped, then the rule of the optimiser."""
    model, twin = small(), small()
    settings = FitSettings(epochs=1, optimizer=optimizer, table_l2=0.7, clip_norm=0.5, learning_rate=0.1)  # type: ignore[arg-type]
    one = batches(1)[:1]
    fit(model, batches=lambda _: one, loss=loss, validate=validate, settings=settings, seed=3)

    torch.manual_seed(3)
    (loss(twin, one[0]) + 0.35 * twin.table.weight.square().sum()).backward()
    norm = torch.stack([p.grad.norm() for p in twin.parameters()]).norm()  # type: ignore[union-attr]
    for expected, found in zip(twin.parameters(), model.parameters(), strict=True):
        gradient = expected.grad * (0.5 / (norm + 1e-6)).clamp(max=1.0)
        # Adam's first step is lr * g / (|g| + eps), whatever the moments' decay; SGD's is lr * g
        move = gradient if optimizer == "sgd" else gradient / (gradient.abs() + 1e-8)
        assert torch.allclose(found, expected - 0.1 * move, atol=1e-5)


def test_shared_table_decays_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Embedding(3, 2)
            self.b = nn.Embedding(3, 2)
            self.b.weight = self.a.weight

        def forward(self, ids: Tensor) -> Tensor:
            return 0.0 * self.a(ids).sum()

    model = Shared()
    start = model.a.weight.detach().clone()
    settings = FitSettings(epochs=1, optimizer="sgd", learning_rate=0.1, table_l2=1.0, clip_norm=None)
    fit(model, batches=lambda _: [torch.tensor([0])], loss=lambda m, b: m(b), validate=lambda _: 0.0, settings=settings)
    assert torch.allclose(model.a.weight, 0.9 * start)


def test_plateau_lowers_the_rate_to_its_floor_and_patience_stops() -> None:
    scores = iter([0.5, 0.6, 0.6, 0.6 + 1e-7, 0.6, 0.9])
    settings = FitSettings(learning_rate=1e-3, patience=3, minimum_learning_rate=5e-5)
    result = fit(small(), batches=batches, loss=loss, validate=lambda _: next(scores), settings=settings)
    assert (result.epochs, result.best_epoch, result.best_score) == (5, 2, 0.6)
    rates = [entry["learning_rate"] for entry in result.history]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4, 5e-5])


def test_misses_are_forgotten_after_an_improvement() -> None:
    scores = iter([0.5, 0.4, 0.6, 0.5, 0.7, 0.1, 0.1])
    result = fit(small(), batches=batches, loss=loss, validate=lambda _: next(scores), settings=FitSettings(patience=2))
    assert (result.epochs, result.best_epoch) == (7, 5)


def test_hooks_are_called_in_order() -> None:
    calls: list[str] = []

    class Recorder(Hook):
        def start(self, model: nn.Module) -> None:
            calls.append("start")

        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], loss: Tensor) -> Tensor:
            calls.append("loss")
            assert torch.equal(batch[1], (batch[0] % 2).float())
            return loss + 0.0 * model.out.weight.sum()  # type: ignore[union-attr, operator]

        def before_step(self, model: nn.Module, step: int) -> None:
            assert model.out.weight.grad is not None  # type: ignore[union-attr]
            calls.append(f"before {step}")

        def after_step(self, model: nn.Module, step: int) -> None:
            calls.append(f"after {step}")

        def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:
            calls.append(f"epoch {epoch}")

    fit(
        small(),
        batches=lambda _: batches(1)[:2],
        loss=loss,
        validate=validate,
        settings=FitSettings(epochs=1),
        hooks=(Recorder(),),
    )
    assert calls == ["start", "loss", "before 1", "after 1", "loss", "before 2", "after 2", "epoch 1"]


def test_loss_of_a_hook_reaches_the_gradient_and_hooks_chain() -> None:
    class Pull(Hook):
        def loss(self, model: nn.Module, batch: object, loss: Tensor) -> Tensor:
            return loss + model.table.weight.sum()  # type: ignore[union-attr, operator]

    class Half(Hook):
        def loss(self, model: nn.Module, batch: object, loss: Tensor) -> Tensor:
            return loss / 2

    model = small()
    start = model.table.weight.detach().clone()
    settings = FitSettings(epochs=1, optimizer="sgd", learning_rate=0.5, clip_norm=None)
    fit(
        model,
        batches=lambda _: batches(1)[:1],
        loss=lambda m, b: 0.0 * loss(m, b),
        validate=validate,
        settings=settings,
        hooks=(Pull(), Half()),
    )
    assert torch.allclose(model.table.weight, start - 0.25)


def test_same_seed_same_weights_and_callers_generator_is_left_alone() -> None:
    runs = []
    for _ in range(2):
        model = small()
        torch.manual_seed(11)
        fit(model, batches=batches, loss=loss, validate=validate, settings=FitSettings(epochs=2), seed=5)
        runs.append((model.state_dict(), torch.rand(3)))
    assert all(torch.equal(runs[0][0][key], runs[1][0][key]) for key in runs[0][0])
    torch.manual_seed(11)
    assert torch.equal(runs[0][1], torch.rand(3))


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("kill_after", [1, 3, 5])
def test_resumed_equals_undisturbed_bit_for_bit(tmp_path: Path, kill_after: int, optimizer: str) -> None:
    settings = FitSettings(epochs=6, learning_rate=0.03, patience=9, optimizer=optimizer)  # type: ignore[arg-type]
    whole = small()
    expected = fit(whole, batches=batches, loss=loss, validate=validate, settings=settings, seed=1)

    def dying(epoch: int) -> list[tuple[Tensor, Tensor]]:
        if epoch > kill_after:
            raise Killed
        return batches(epoch)

    path = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        fit(small(), batches=dying, loss=loss, validate=validate, settings=settings, seed=1, checkpoint=path)
    resumed = small(seed=99)
    found = fit(resumed, batches=batches, loss=loss, validate=validate, settings=settings, seed=1, checkpoint=path)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    assert (found.best_score, found.best_epoch, found.steps) == (
        expected.best_score,
        expected.best_epoch,
        expected.steps,
    )
    assert [e["loss"] for e in found.history] == [e["loss"] for e in expected.history]
    # a finished training resumes to the same weights without another step
    again = small(seed=7)
    fit(again, batches=dying, loss=loss, validate=validate, settings=settings, seed=1, checkpoint=path)
    assert torch.equal(again.table.weight, whole.table.weight)


def test_checkpoint_of_another_training_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    settings = FitSettings(epochs=1)

    def go(model: nn.Module, settings: FitSettings, seed: int = 0) -> None:
        fit(model, batches=batches, loss=loss, validate=validate, settings=settings, seed=seed, checkpoint=path)

    go(small(), settings)
    with pytest.raises(ArtifactError, match="other settings or seed"):
        go(small(), settings, seed=1)
    with pytest.raises(ArtifactError, match="other settings or seed"):
        go(small(), FitSettings(epochs=1, learning_rate=1.0))
    wider = small()
    wider.table = nn.Embedding(21, 4)
    with pytest.raises(ArtifactError, match=r"another model: tensor 'table.weight'"):
        go(wider, settings)
    raw = path.read_bytes()
    for cut in (0, 5, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:cut])
        with pytest.raises(ArtifactError, match="damaged"):
            go(small(), settings)
    path.write_bytes(raw)
    go(small(), FitSettings(epochs=2))  # a higher cap continues


def test_nan_loss_names_epoch_and_step() -> None:
    def poisoned(epoch: int) -> list[tuple[Tensor, Tensor]]:
        good = batches(epoch)
        if epoch == 2:
            good[1] = (good[1][0], torch.full((16,), math.nan))
        return good

    with pytest.raises(NonFiniteError, match="nan in epoch 2, step 6"):
        fit(small(), batches=poisoned, loss=loss, validate=validate, settings=FitSettings())


def test_nan_score_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="validation score became nan in epoch 1"):
        fit(small(), batches=batches, loss=loss, validate=lambda _: math.nan, settings=FitSettings())


def test_empty_train_split_and_frozen_model_are_refused() -> None:
    with pytest.raises(TaskError, match="train split is empty"):
        fit(small(), batches=lambda _: [], loss=loss, validate=validate, settings=FitSettings())
    frozen = small().requires_grad_(False)
    with pytest.raises(TaskError, match="no trainable parameter"):
        fit(frozen, batches=batches, loss=loss, validate=validate, settings=FitSettings())


def test_progress_reaches_the_total_even_when_stopped_early() -> None:
    seen: list[tuple[int, int]] = []

    class Recorder(Log):
        def progress(self, what: str, done: int, total: int) -> None:
            seen.append((done, total))

    fit(
        small(),
        batches=batches,
        loss=loss,
        validate=lambda _: 0.5,
        settings=FitSettings(epochs=9, patience=1),
        log=Recorder(),
    )
    assert seen == [(1, 9), (9, 9)]
