"""Reading models that FuxiCTR trained: `feature_map.json` and a state dict become a lessen model with equal outputs.

FuxiCTR keeps one table a field, ids 0 = padding, 1 .. V-2 known, V-1 out of vocabulary. Here one flat table holds all
fields, with out-of-vocabulary first; `FuxiModel.ids` translates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lessen.data.columns import IdField, Layout
from lessen.errors import ArtifactError, DataError
from lessen.files import parse_json, read_checked
from lessen.stored.fields import Segment
from lessen.tasks.ctr.models.dcnv2 import DCNv2
from lessen.tasks.ctr.models.deepfm import DeepFM

TABLES = "embedding_layer.embedding_layer.embedding_layers."
FIRST_ORDER = "fm.lr_layer.embedding_layer.embedding_layer.embedding_layers."


@dataclass(frozen=True)
class FuxiModel:
    """The imported model, its layout, and the size of each field's FuxiCTR vocabulary."""

    model: nn.Module
    layout: Layout
    sizes: dict[str, int]

    def ids(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return global ids int32 [B, fields] for FuxiCTR's ids of each field, int [B].

        Raises:
            DataError: a field is missing, or an id lies outside its vocabulary.
        """
        columns = []
        for segment in self.layout.segments:
            if segment.name not in features:
                raise DataError(f"the batch lacks the field {segment.name!r}")
            local, size = features[segment.name].long(), self.sizes[segment.name]
            if int(local.min()) < 0 or int(local.max()) >= size:
                raise DataError(f"field {segment.name!r} holds ids outside 0 .. {size - 1}")
            unknown = torch.where(local == size - 1, segment.start, segment.start + local)
            columns.append(torch.where(local == 0, 0, unknown))
        return torch.stack(columns, dim=1).int()


def import_fuxictr(feature_map: Path, weights: Path, model: Literal["deepfm", "dcnv2"]) -> FuxiModel:
    """Build the lessen model for a FuxiCTR checkpoint of DeepFM or parallel DCNv2 over categorical fields.

    The weights are read by `torch.load(weights_only=True)`; dropout is left out, as it has no part in serving.

    Raises:
        DataError: a file is unreadable, a field is not categorical, or tensors are missing or misshapen.
    """
    sizes = _sizes(feature_map)
    try:
        state: dict[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a foreign file
        raise DataError(f"cannot read {weights} as a state dict: {str(error).splitlines()[0]}") from error
    try:
        layout, made = _build(sizes, state, model)
    except (KeyError, IndexError, RuntimeError) as error:
        raise DataError(f"{weights} is no FuxiCTR {model} of this feature map: {str(error).splitlines()[0]}") from error
    return FuxiModel(made.eval(), layout, sizes)


def _sizes(path: Path) -> dict[str, int]:
    try:
        described: Any = parse_json(read_checked(path), str(path))
        features = {name: spec for entry in described["features"] for name, spec in entry.items()}
        kinds = {name: spec["type"] for name, spec in features.items()}
        sizes = {name: int(spec["vocab_size"]) for name, spec in features.items() if kinds[name] == "categorical"}
    except (ArtifactError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no feature_map.json of FuxiCTR: {error}") from error
    other = [name for name, kind in kinds.items() if kind not in ("categorical", "meta")]
    if other:
        raise DataError(f"{path}: the field {other[0]!r} is {kinds[other[0]]}; only categorical fields can be imported")
    return sizes


def _build(sizes: dict[str, int], state: Mapping[str, Tensor], name: str) -> tuple[Layout, nn.Module]:
    segments: list[Segment] = []
    for field, size in sizes.items():
        start = segments[-1].start + segments[-1].rows if segments else 1
        segments.append(Segment(field, start, size - 1))
    fields = tuple(IdField(s.name, "categorical", i, 1, s.name) for i, s in enumerate(segments))
    layout = Layout(fields, tuple(segments))
    dim = state[f"{TABLES}{segments[0].name}.weight"].shape[1]
    tower = _tower(state, "mlp.mlp." if name == "deepfm" else "parallel_dnn.mlp.")
    hidden = [len(weight) for weight in tower["weights"]]
    norm = bool(tower["norms"])
    made: DeepFM | DCNv2
    if name == "deepfm":
        made = DeepFM(layout, dim, hidden[:-1], dropout=0.0, batch_norm=norm)
        prefixes = [TABLES, FIRST_ORDER]
    else:
        crosses = [key for key in state if key.startswith("crossnet.cross_layers.") and key.endswith(".weight")]
        made = DCNv2(layout, dim, len(crosses), hidden, dropout=0.0, batch_norm=norm)
        prefixes = [TABLES]
    with torch.no_grad():
        for segment in segments:
            joined = torch.cat([state[f"{prefix}{segment.name}.weight"] for prefix in prefixes], dim=1)
            rows = slice(segment.start, segment.start + segment.rows)
            # out of vocabulary is the last row there and the first here; row 0 is padding
            made.vectors.table.weight[rows] = torch.cat([joined[-1:], joined[1:-1]])
        _copy_tower(tower, made.deep)
        if isinstance(made, DeepFM):
            made.deep[-1].bias.add_(state["fm.lr_layer.bias"])  # type: ignore[operator]
        else:
            for number, layer in enumerate(made.cross.layers):
                layer.load_state_dict(_part(state, f"crossnet.cross_layers.{number}."))
            made.output[0].load_state_dict(_part(state, "fc."))
    return layout, made


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _tower(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Return the numbered layers of an MLP: Linear ones, and BatchNorm ones, in order."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, value in _part(state, prefix).items():
        number, _, name = key.partition(".")
        layers.setdefault(int(number), {})[name] = value
    ordered = [layers[number] for number in sorted(layers)]
    linears = [layer for layer in ordered if "running_mean" not in layer]
    return {
        "linears": linears,
        "norms": [layer for layer in ordered if "running_mean" in layer],
        "weights": [layer["weight"] for layer in linears],
    }


def _copy_tower(tower: dict[str, Any], target: nn.Sequential) -> None:
    """Copy the layers into an MLP of the same shape."""
    for kind, layers in ((nn.Linear, tower["linears"]), (nn.BatchNorm1d, tower["norms"])):
        mine = [module for module in target if isinstance(module, kind)]
        for module, layer in zip(mine, layers, strict=True):
            module.load_state_dict(layer)
