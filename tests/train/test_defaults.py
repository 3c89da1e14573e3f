"""The defaults train as they always did: bit for bit what a plain loop gives; old checkpoints still continue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lessen.train.fit import fit
from lessen.train.settings import FitSettings
from small_training import batches, loss, same, small, validate


def plain_loop(model: nn.Module, make: type[torch.optim.Optimizer], epochs: int, seed: int, **options) -> None:
    """Plateau decay by 0.1, patience 2, norm clipped to 10, best weights back: nothing but torch."""
    torch.manual_seed(seed)
    optimizer = make(model.parameters(), fused=True, **options)
    best, kept, misses = -float("inf"), {}, 0
    for epoch in range(1, epochs + 1):
        model.train()
        for batch in batches(epoch):
            value = loss(model, batch)
            model.zero_grad(set_to_none=True)
            value.backward()
            norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
            if norm > 10:
                for p in model.parameters():
                    p.grad.mul_(10 / (norm + 1e-6))
            optimizer.step()
        score = validate(model)
        if score > best + 1e-6:
            best, kept, misses = score, {k: v.clone() for k, v in model.state_dict().items()}, 0
        else:
            misses += 1
            for group in optimizer.param_groups:
                group["lr"] = min(group["lr"], max(group["lr"] * 0.1, 1e-6))
        if misses == 2:
            break
    model.load_state_dict(kept)


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 0.1}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_defaults_are_the_plain_loop_bit_for_bit(name: str, make: type[torch.optim.Optimizer], options: dict) -> None:
    expected, model = small(), small()
    plain_loop(expected, make, 12, 3, lr=0.3, **options)
    decay = options.get("weight_decay", 0.0)
    settings = FitSettings(epochs=12, learning_rate=0.3, optimizer=name, weight_decay=decay)  # type: ignore[arg-type]
    done = fit(model, batches=batches, loss=loss, validate=validate, settings=settings, seed=3)
    assert same(expected, model)
    assert len({entry["learning_rate"] for entry in done.history}) > 1  # the plateau was reached


def test_a_checkpoint_of_the_first_release_still_continues(tmp_path: Path) -> None:
    """It lists every setting of its time, saves all parameters and knows nothing of passes or hooks."""
    path, settings = tmp_path / "state.safetensors", FitSettings(epochs=2, patience=9)
    fit(small(), batches=batches, loss=loss, validate=validate, settings=settings, checkpoint=path)
    with safe_open(str(path), framework="pt") as handle:
        header = json.loads(handle.metadata()["lessen"])
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    header["identity"]["settings"] = {
        "learning_rate": 1e-3,
        "optimizer": "adam",
        "weight_decay": 0.0,
        "table_l2": 0.0,
        "table_updates": "dense",
        "clip_norm": 10.0,
        "patience": 9,
        "plateau_factor": 0.1,
        "minimum_learning_rate": 1e-6,
    }
    for name in ("examples", "tokens", "passes", "taken", "fall"):
        del header["progress"][name]
    save_file(tensors, path, metadata={"lessen": json.dumps(header)})
    whole, resumed = small(), small(5)
    longer = FitSettings(epochs=5, patience=9)
    fit(whole, batches=batches, loss=loss, validate=validate, settings=longer)
    fit(resumed, batches=batches, loss=loss, validate=validate, settings=longer, checkpoint=path)
    assert same(whole, resumed)
