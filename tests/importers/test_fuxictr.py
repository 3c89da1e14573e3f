"""Importing FuxiCTR checkpoints: names and shapes as FuxiCTR 2.3.10 writes them, outputs by its equations."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lessen.errors import ConfigError, DataError
from lessen.importers.fuxictr import TABLES, import_fuxictr
from lessen.importers.fuxictr_weights import first_order_tables

SIZES = {"user": 7, "item": 9, "hour": 5}
DIM = 4
FIRST_ORDER = first_order_tables("deepfm")


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
    for spec, message in (
        ('{"type": "embedding"}', "field 'p' is embedding; categorical, numeric and sequence"),
        ('{"type": "sequence", "vocab_size": 9}', "field 'p' is sequence with no feature_encoder"),
        ('{"type": "categorical", "vocab_size": 9, "pretrained_emb": "x.npz"}', "categorical with pretrained vectors"),
        ('{"type": "numeric"}', "no field with ids"),
    ):
        described.write_text(f'{{"features": [{{"p": {spec}}}]}}')
        with pytest.raises(DataError, match=message):
            import_fuxictr(described, weights, "deepfm")
    with pytest.raises(ConfigError, match="'AutoFIS' cannot be imported"):
        import_fuxictr(described, weights, "AutoFIS")
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


# -- all models, numbers and sequences in the order of the map ---------------------------------------------------------
FIELDS: dict[str, tuple[str, int]] = {  # numbers before ids, so that the order of the map is not ours
    "price": ("numeric", 0),
    "user": ("categorical", 7),
    "item": ("categorical", 9),
    "age": ("numeric", 0),
    "hour": ("categorical", 5),
}
FIRST = {"lr": "lr_layer.", "fm": "fm.lr_layer.", "deepfm": "fm.lr_layer.", "xdeepfm": "lr_layer."}
TOWERS = {
    "dnn": "mlp.mlp.",
    "ipnn": "dnn.mlp.",
    "deepfm": "mlp.mlp.",
    "dcn": "dnn.mlp.",
    "dcnv2": "parallel_dnn.mlp.",
    "xdeepfm": "dnn.mlp.",
}


def random_checkpoint(folder: Path, model: str, sequence: bool) -> tuple[Path, Path, dict[str, Tensor], list[str]]:
    """Write a checkpoint with the names and shapes of FuxiCTR; a sequence shares the table of `item`."""
    torch.manual_seed(0)
    names = [*FIELDS, "history"] if sequence else list(FIELDS)
    width, state = DIM * len(names), {}
    for prefix, dim in ((TABLES, DIM), *(((first_order_tables(model), 1),) if model in FIRST else ())):
        for name, (kind, size) in FIELDS.items():
            key = f"{prefix}{name}.weight"
            state[key] = torch.randn(dim, 1) if kind == "numeric" else torch.randn(size, dim)
            if kind == "categorical":
                state[key][0] = 0.0
    if sequence:
        state[f"{TABLES}history.weight"] = state[f"{TABLES}item.weight"]
    pairs = len(names) * (len(names) - 1) // 2 if model == "ipnn" else 0
    if model in TOWERS:
        last = model not in ("dcn", "dcnv2")
        state |= tower(TOWERS[model], [width + pairs, 8, 6, *([1] if last else [])], last=last)
    if model in ("lr", "fm", "deepfm"):
        state[f"{FIRST[model]}bias"] = torch.randn(1)
    for layer in range(2):
        if model == "dcn":
            state |= {
                f"crossnet.cross_net.{layer}.weight.weight": torch.randn(1, width) / 4,
                f"crossnet.cross_net.{layer}.bias": torch.randn(width),
            }
        elif model == "dcnv2":
            state |= {
                f"crossnet.cross_layers.{layer}.weight": torch.randn(width, width) / 4,
                f"crossnet.cross_layers.{layer}.bias": torch.randn(width),
            }
        elif model == "xdeepfm":
            maps, below = (5, 3)[layer], (len(names), 5)[layer]
            state |= {
                f"cin.cin_layer.layer_{layer + 1}.weight": torch.randn(maps, len(names) * below, 1) / 4,
                f"cin.cin_layer.layer_{layer + 1}.bias": torch.randn(maps),
            }
    if model == "xdeepfm":
        state |= {"cin.fc.weight": torch.randn(1, 8), "cin.fc.bias": torch.randn(1)}
    if model in ("dcn", "dcnv2"):
        state |= {"fc.weight": torch.randn(1, width + 6), "fc.bias": torch.randn(1)}
    features: list[dict[str, dict[str, object]]] = [
        {name: {"type": kind, "vocab_size": size} if size else {"type": kind}} for name, (kind, size) in FIELDS.items()
    ]
    if sequence:
        shared = {"vocab_size": 9, "max_len": 3, "share_embedding": "item"}
        features.append({"history": {"type": "sequence", "feature_encoder": "layers.MaskedAveragePooling()", **shared}})
    (folder / "feature_map.json").write_text(json.dumps({"features": features}))
    torch.save(state, folder / "x.model")
    return folder / "feature_map.json", folder / "x.model", state, names


def embedded(state: dict[str, Tensor], prefix: str, names: list[str], given: dict[str, Tensor]) -> Tensor:
    """Return [B, fields, d] in the order of the map."""
    parts = []
    for name in names:
        weight = state[f"{prefix}{name}.weight"]
        if name == "history":
            rows, mask = weight[given[name]], (given[name] > 0).float()
            parts.append(rows.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))
        else:
            parts.append(given[name][:, None] * weight[:, 0] if FIELDS[name][0] == "numeric" else weight[given[name]])
    return torch.stack(parts, 1)


def expected_logits(model: str, state: dict[str, Tensor], names: list[str], given: dict[str, Tensor]) -> Tensor:
    e = embedded(state, TABLES, names, given) if model != "lr" else torch.zeros(len(given["user"]), 1, 1)
    x0, logit = e.flatten(1), torch.zeros(len(e))
    if model in FIRST:
        logit = logit + embedded(state, first_order_tables(model), names, given).sum((1, 2))
        logit = logit + state.get(f"{FIRST[model]}bias", torch.zeros(1))
    if model in ("fm", "deepfm"):
        logit = logit + (torch.einsum("bid,bjd->bij", e, e).triu(1)).sum((1, 2))
    if model == "ipnn":
        upper = torch.triu(torch.ones(len(names), len(names)), 1).bool()
        x0 = torch.cat([x0, torch.einsum("bid,bjd->bij", e, e)[:, upper]], 1)
    deep = run_tower(state, TOWERS[model], x0) if model in TOWERS else None
    if model in ("dcn", "dcnv2"):
        x = x0
        for n in range(2):
            if model == "dcn":
                x = (
                    x
                    + x0 * (x @ state[f"crossnet.cross_net.{n}.weight.weight"].T)
                    + state[f"crossnet.cross_net.{n}.bias"]
                )
            else:
                key = f"crossnet.cross_layers.{n}."
                x = x + x0 * (x @ state[f"{key}weight"].T + state[f"{key}bias"])
        return (torch.cat([x, deep], 1) @ state["fc.weight"].T + state["fc.bias"])[:, 0]  # type: ignore[list-item]
    if model == "xdeepfm":
        x, pooled = e, []
        for n in (1, 2):
            key = f"cin.cin_layer.layer_{n}."
            outer = torch.einsum("bhd,bmd->bhmd", e, x).flatten(1, 2)
            x = torch.einsum("oc,bcd->bod", state[f"{key}weight"][..., 0], outer) + state[f"{key}bias"][:, None]
            pooled.append(x.sum(2))
        logit = logit + (torch.cat(pooled, 1) @ state["cin.fc.weight"].T + state["cin.fc.bias"])[:, 0]
    return logit if deep is None else logit + deep[:, 0]


CASES = [(name, False) for name in (*FIRST, "dnn", "ipnn", "dcn", "dcnv2")]
CASES += [(name, True) for name in ("dnn", "ipnn", "dcn", "dcnv2")]


@pytest.mark.parametrize(("model", "sequence"), CASES)
def test_numbers_and_sequences_in_any_order_give_fuxictrs_logits(model: str, sequence: bool, tmp_path: Path) -> None:
    described, weights, state, names = random_checkpoint(tmp_path, model, sequence)
    found = import_fuxictr(described, weights, model)
    given = {**batch(), "price": torch.rand(40), "age": torch.randn(40)}
    if sequence:
        given["history"] = torch.randint(0, 9, (40, 3))
        given["history"][0] = 0
    expected = expected_logits(model, state, names, given)
    got = found.model(**found.inputs(given))
    assert torch.allclose(got, expected, atol=1e-3, rtol=1e-4)
    assert len({segment.name for segment in found.layout.segments}) == 3  # the sequence has no table of its own


def test_a_sequence_with_first_order_weights_is_refused(tmp_path: Path) -> None:
    described, weights, _, _ = random_checkpoint(tmp_path, "dnn", True)
    with pytest.raises(DataError, match=r"'history' is a sequence, whose first-order weights deepfm adds up"):
        import_fuxictr(described, weights, "deepfm")
