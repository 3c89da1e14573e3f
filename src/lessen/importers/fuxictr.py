"""Reading models that FuxiCTR trained: `feature_map.json` and a state dict become a lessen model with equal outputs.

FuxiCTR keeps one table a field, ids 0 = padding, 1 .. V-2 known, V-1 out of vocabulary. One flat table holds all
fields here, with out-of-vocabulary first; `FuxiModel.inputs` translates. Its vectors lie in the order of the feature
map, ours in the order categorical, sequence, numeric: `fuxictr_weights` moves the weights that meet them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.data.columns import IdField, Layout
from lessen.errors import ArtifactError, ConfigError, DataError, nearest
from lessen.files import parse_json, read_checked
from lessen.importers.fuxictr_weights import TABLES, WITH_FIRST_ORDER, Names, build
from lessen.stored.fields import Segment

POOLING = "layers.MaskedAveragePooling()"


@dataclass(frozen=True)
class FuxiField:
    """One entry of the feature map; `owner` is the field whose table it looks up."""

    name: str
    kind: str
    owner: str
    size: int = 0
    length: int = 1


@dataclass(frozen=True)
class FuxiModel:
    """The imported model, its layout, and the fields of the feature map in their order."""

    model: nn.Module
    layout: Layout
    fields: tuple[FuxiField, ...]

    def inputs(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the model is called with, for FuxiCTR's values of each field.

        Args:
            features: ids int [B] of a categorical field, [B, length] of a sequence, numbers [B] of a numeric one.

        Raises:
            DataError: a field is missing, or an id lies outside its vocabulary.
        """
        found = {"ids": self.ids(features)}
        if self.layout.numeric:
            numbers = [_given(features, name).float().reshape(-1) for name in self.layout.numeric]
            found["numeric"] = torch.stack(numbers, dim=1)
        return found

    def ids(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return global ids int32 [B, columns]; see `inputs`."""
        sizes = {field.name: field.size for field in self.fields}
        columns = []
        for field in self.layout.fields:
            start, size = self.layout.segment(field.name).start, sizes[field.name]
            local = _given(features, field.name).long().reshape(-1, field.width)
            if local.numel() and (int(local.min()) < 0 or int(local.max()) >= size):
                raise DataError(f"field {field.name!r} holds ids outside 0 .. {size - 1}")
            unknown = torch.where(local == size - 1, start, start + local)
            columns.append(torch.where(local == 0, 0, unknown))
        return torch.cat(columns, dim=1).int()


def _given(features: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in features:
        raise DataError(f"the batch lacks the field {name!r}")
    return features[name]


def import_fuxictr(feature_map: Path, weights: Path, model: str) -> FuxiModel:
    """Build the lessen model for a FuxiCTR checkpoint.

    Args:
        model: lr, fm, dnn, ipnn (PNN there), deepfm, dcn, dcnv2 (parallel, full rank) or xdeepfm. A state dict does not
            say which activations its MLP had; ReLU is taken, the default of all eight.

    The weights are read by `torch.load(weights_only=True)`; dropout is left out, as it has no part in serving. Fields
    may be categorical, numeric or sequences under masked average pooling, tables shared or not. FuxiCTR adds up the
    first-order weights of a sequence where we average, so that models with a first-order term take no sequence.

    Raises:
        ConfigError: another model.
        DataError: a file is unreadable, a field is of another kind, or tensors are missing or misshapen.
    """
    if model not in Names.known:
        raise ConfigError(f"FuxiCTR's {model!r} cannot be imported; {nearest(model, Names.known)}")
    fields = _fields(feature_map)
    pooled = [field.name for field in fields if field.kind == "sequence"]
    if pooled and model in WITH_FIRST_ORDER:
        raise DataError(
            f"{feature_map}: {pooled[0]!r} is a sequence, whose first-order weights {model} adds up and lessen "
            "averages; models without first-order weights can be imported"
        )
    try:
        state: dict[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a foreign file
        raise DataError(f"cannot read {weights} as a state dict: {str(error).splitlines()[0]}") from error
    layout = _layout(fields)
    ours = [field.name for field in (*layout.single, *layout.pooled)] + list(layout.numeric)
    theirs = [field.name for field in fields]
    try:
        made = build(model, layout, state, [theirs.index(name) for name in ours])
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise DataError(f"{weights} is no FuxiCTR {model} of this feature map: {str(error).splitlines()[0]}") from error
    return FuxiModel(made.eval(), layout, fields)


def _fields(path: Path) -> tuple[FuxiField, ...]:
    try:
        described: Any = parse_json(read_checked(path), str(path))
        features = {name: spec for entry in described["features"] for name, spec in entry.items()}
        fields = tuple(_field(name, spec, features) for name, spec in features.items() if spec["type"] != "meta")
    except (ArtifactError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is no feature_map.json of FuxiCTR: {error}") from error
    for field in fields:
        if field.kind not in ("categorical", "numeric", "sequence"):
            raise DataError(
                f"{path}: the field {field.name!r} is {field.kind}; categorical, numeric and sequence fields can be "
                "imported, sequences under masked average pooling"
            )
    if not any(field.kind != "numeric" for field in fields):
        raise DataError(f"{path} has no field with ids; there is nothing to look up")
    return fields


def _field(name: str, spec: Mapping[str, Any], features: Mapping[str, Any]) -> FuxiField:
    kind = str(spec["type"])
    if kind == "numeric":
        return FuxiField(name, kind, name)
    encoder = spec.get("feature_encoder")
    if "pretrained_emb" in spec or encoder not in (None, POOLING) or (kind == "sequence") != (encoder == POOLING):
        kind += f" with {encoder or ('pretrained vectors' if 'pretrained_emb' in spec else 'no feature_encoder')}"
    owner = str(spec.get("share_embedding", name))
    size = int(features[owner if owner in features else name]["vocab_size"]) if "vocab_size" in spec else 0
    return FuxiField(name, kind, owner if owner in features else name, size, int(spec.get("max_len", 1)))


def _layout(fields: tuple[FuxiField, ...]) -> Layout:
    """Return one segment a table and columns in the order of the feature map."""
    segments: dict[str, Segment] = {}
    columns: list[IdField] = []
    end = 1
    for field in fields:
        if field.kind == "numeric":
            continue
        if field.owner not in segments:
            segments[field.owner] = Segment(field.owner, end, field.size - 1)
            end += field.size - 1
        width = field.length if field.kind == "sequence" else 1
        start = columns[-1].start + columns[-1].width if columns else 0
        columns.append(
            IdField(field.name, "sequence" if field.kind == "sequence" else "categorical", start, width, field.owner)
        )
    numbers = tuple(field.name for field in fields if field.kind == "numeric")
    return Layout(tuple(columns), tuple(segments.values()), numbers)


__all__ = ["TABLES", "FuxiField", "FuxiModel", "import_fuxictr"]
