"""Importing FuxiCTR checkpoints: names and shapes as FuxiCTR 2.3.10 writes them, outputs by its equations."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lessen.errors import DataError
from lessen.tasks.ctr.fuxictr import FIRST_ORDER, TABLES, import_fuxictr

SIZES = {"user": 7, "item": 9, "hour": 5}
DIM = 4


def tower(prefix: str, widths: list[int], last: bool) -> dict[str, Tensor]:
    """Linear, BatchNorm, ReLU, Dropout numbered 0, 1, (2, 3), 4, 5, ... as in MLP_Block."""
    state: dict[str, Tensor] = {}
    for layer, (below, above) in enumerate(pairwise(widths)):
        state[f"{prefix}{4 * layer}.weight"] = torch.randn(above, below)
        state[f"{prefix}{4 * layer}.bias"] = torch.randn(above)
        if layer < len(widths) - 2 or not last:
            norm = f"{prefix}{4 * layer + 1}."
            state |= {f"{norm}weight": torch.randn(above), f"{norm}bias": torch.randn(above)}
            state |= {f"{norm}running_mean": torch.randn(above), f"{norm}running_var": torch.rand(above) + 0.5}
            state[f"{norm}num_batches_tracked"] = torch.tensor(3)
    return state


def run_tower(state: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    number = 0
    while f"{prefix}{number}.weight" in state:
        x = x @ state[f"{prefix}{number}.weight"].T + state[f"{prefix}{number}.bias"]
        norm = f"{prefix}{number + 1}."
        if f"{norm}running_mean" in state:
            x = (x - state[f"{norm}running_mean"]) / (state[f"{norm}running_var"] + 1e-5).sqrt()
            x = (x * state[f"{norm}weight"] + state[f"{norm}bias"]).relu()
        number += 4
    return x


def checkpoint(folder: Path, model: str) -> tuple[Path, Path, dict[str, Tensor]]:
    torch.manual_seed(0)
    state = {f"{TABLES}{name}.weight": torch.randn(size, DIM) for name, size in SIZES.items()}
    if model == "deepfm":
        state["fm.lr_layer.bias"] = torch.randn(1)
        state |= {f"{FIRST_ORDER}{name}.weight": torch.randn(size, 1) for name, size in SIZES.items()}
        state |= tower("mlp.mlp.", [12, 8, 6, 1], last=True)
    else:
        state |= tower("parallel_dnn.mlp.", [12, 8, 6], last=False)
        for layer in range(2):
            state |= {
                f"crossnet.cross_layers.{layer}.{k}": torch.randn(*s)
                for k, s in (("weight", (12, 12)), ("bias", (12,)))
            }
        state |= {"fc.weight": torch.randn(1, 18), "fc.bias": torch.randn(1)}
    for key in state:  # padding rows are zero
        if "embedding_layers" in key:
            state[key][0] = 0.0
    described = {
        "dataset_id": "x",
        "num_fields": 3,
        "labels": ["click"],
        "features": [{n: {"type": "categorical", "vocab_size": s, "padding_idx": 0}} for n, s in SIZES.items()],
    }
    (folder / "feature_map.json").write_text(json.dumps(described))
    torch.save(state, folder / "x.model")
    return folder / "feature_map.json", folder / "x.model", state


def batch(rows: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randint(0, size, (rows,), generator=generator) for name, size in SIZES.items()}


def test_deepfm_gives_fuxictrs_logits(tmp_path: Path) -> None:
    described, weights, state = checkpoint(tmp_path, "deepfm")
    found = import_fuxictr(described, weights, "deepfm")
    vectors = [state[f"{TABLES}{name}.weight"][ids] for name, ids in batch().items()]
    first = sum(state[f"{FIRST_ORDER}{name}.weight"][ids, 0] for name, ids in batch().items())
    second = sum((vectors[i] * vectors[j]).sum(1) for i in range(3) for j in range(i))
    deep = run_tower(state, "mlp.mlp.", torch.cat(vectors, 1))[:, 0]
    expected = state["fm.lr_layer.bias"] + first + second + deep
    assert torch.allclose(found.model(found.ids(batch())), expected, atol=1e-4)


def test_dcnv2_gives_fuxictrs_logits(tmp_path: Path) -> None:
    described, weights, state = checkpoint(tmp_path, "dcnv2")
    found = import_fuxictr(described, weights, "dcnv2")
    x = x0 = torch.cat([state[f"{TABLES}{name}.weight"][ids] for name, ids in batch().items()], 1)
    for layer in range(2):
        name = f"crossnet.cross_layers.{layer}."
        x = x + x0 * (x @ state[f"{name}weight"].T + state[f"{name}bias"])
    joined = torch.cat([x, run_tower(state, "parallel_dnn.mlp.", x0)], 1)
    expected = (joined @ state["fc.weight"].T + state["fc.bias"])[:, 0]
    assert torch.allclose(found.model(found.ids(batch())), expected, atol=1e-2, rtol=1e-4)


def test_padding_and_unknown_ids_map_to_their_rows(tmp_path: Path) -> None:
    described, weights, state = checkpoint(tmp_path, "deepfm")
    found = import_fuxictr(described, weights, "deepfm")
    table, item = found.model.vectors.table.weight, found.layout.segments[1]  # type: ignore[union-attr]
    ids = found.ids({"user": torch.tensor([0, 6, 1]), "item": torch.tensor([0, 8, 1]), "hour": torch.tensor([0, 4, 1])})
    assert ids[:, 1].tolist() == [0, item.start, item.start + 1]
    assert torch.equal(table[item.start, :DIM], state[f"{TABLES}item.weight"][8])  # type: ignore[index]
    assert torch.equal(table[item.start + 1, :DIM], state[f"{TABLES}item.weight"][1])  # type: ignore[index]


def test_bad_files_are_named_in_one_line(tmp_path: Path) -> None:
    described, weights, state = checkpoint(tmp_path, "deepfm")
    found = import_fuxictr(described, weights, "deepfm")
    with pytest.raises(DataError, match="ids outside 0 .. 6"):
        found.ids({**batch(1), "user": torch.tensor([7])})
    with pytest.raises(DataError, match="lacks the field 'item'"):
        found.ids({"user": torch.tensor([1])})
    with pytest.raises(DataError, match="no FuxiCTR dcnv2"):
        import_fuxictr(described, weights, "dcnv2")
    torch.save({key: value for key, value in state.items() if key != f"{TABLES}item.weight"}, weights)
    with pytest.raises(DataError, match=r"no FuxiCTR deepfm.*item"):
        import_fuxictr(described, weights, "deepfm")
    weights.write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match="as a state dict"):
        import_fuxictr(described, weights, "deepfm")
    described.write_text('{"features": [{"p": {"type": "numeric"}}]}')
    with pytest.raises(DataError, match="field 'p' is numeric"):
        import_fuxictr(described, weights, "deepfm")
    described.write_text("{}")
    with pytest.raises(DataError, match="no feature_map.json"):
        import_fuxictr(described, weights, "deepfm")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    described, weights, _ = checkpoint(tmp_path, "deepfm")
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (mark,)

    torch.save({"x": Evil()}, weights)
    with pytest.raises(DataError, match="as a state dict"):
        import_fuxictr(described, weights, "deepfm")
    assert not mark.exists()
