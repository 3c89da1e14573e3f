"""Token vectors of documents in a file of rows: how they are packed, checked, opened and moved to another file.

tokens.values   float32 or float16 [T, dim], or int8 with tokens.scales float32 [T]: one document after the other
tokens.starts   int64 [rows + 1], the first token of each document and the end
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lessen.retrieval.manifest import Manifest
from lessen.stored.vectors.flat import rounded

SEGMENT = 1024
"""Documents of a file at most: each takes as much as hundreds of single vectors."""
HELD = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


def packed(sets: Sequence[Tensor], manifest: Manifest) -> dict[str, Tensor]:
    """Return the tensors of token sets, float [tokens, dim] each, held as the record says."""
    assert manifest.multi is not None
    whole = torch.cat(list(sets)).float()
    starts = torch.tensor([0, *(len(one) for one in sets)]).cumsum(0)
    if manifest.multi["tokens"] != "int8":
        return {"tokens.values": whole.to(HELD[manifest.multi["tokens"]]), "tokens.starts": starts}
    codes, scales = rounded(whole)
    return {"tokens.values": codes, "tokens.scales": scales, "tokens.starts": starts}


def check(tensors: dict[str, Tensor], rows: int, manifest: Manifest) -> None:
    """Refuse token sets that do not fit the record. Raises ValueError, KeyError."""
    assert manifest.multi is not None
    values, starts = tensors["tokens.values"], tensors["tokens.starts"]
    dim, kind = manifest.multi["encoding"]["dim"], HELD[manifest.multi["tokens"]]
    if values.dtype != kind or values.dim() != 2 or values.shape[1] != dim:
        raise ValueError(f"tokens are {values.dtype} of shape {list(values.shape)}, not {kind} [tokens, {dim}]")
    cut = starts.dtype == torch.int64 and len(starts) == rows + 1 and not int(starts[0])
    if not cut or int(starts[-1]) != len(values) or bool((starts.diff() < 1).any()):
        raise ValueError("tokens and documents do not belong together")
    if kind == torch.int8 and tensors["tokens.scales"].shape != (len(values),):
        raise ValueError("tokens and their scales do not belong together")


def opened(tensors: dict[str, Tensor], row: int) -> Tensor:
    """Return the tokens of one document, float32 [tokens, dim]; only they are read from a mapped file."""
    first, end = (int(one) for one in tensors["tokens.starts"][row : row + 2])
    values = tensors["tokens.values"][first:end].float()
    scales = tensors.get("tokens.scales")
    return values if scales is None else values * scales[first:end, None]


def joined(parts: Sequence[tuple[dict[str, Tensor], Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of some rows, int64 [n], of several files, as one file holds them."""
    names = [name for name in ("tokens.values", "tokens.scales") if name in parts[0][0]]
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    lengths = []
    for tensors, rows in parts:
        starts = tensors["tokens.starts"]
        for row in rows.tolist():
            first, end = int(starts[row]), int(starts[row + 1])
            lengths.append(end - first)
            for name in names:
                kept[name].append(tensors[name][first:end])
    made = {name: torch.cat(some) for name, some in kept.items()}
    return {**made, "tokens.starts": torch.tensor([0, *lengths]).cumsum(0)}
