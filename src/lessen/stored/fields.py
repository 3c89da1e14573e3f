"""One flat table for many categorical fields: ids are global, and the table knows which rows are whose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Segment(NamedTuple):
    """Rows `start` to `start + rows` of a table belong to the field `name`."""

    name: str
    start: int
    rows: int


class FieldEmbedding(nn.Embedding):
    """An `nn.Embedding` over the concatenated vocabularies of several fields (global ids, int32 or int64).

    Row 0 is padding; each field's first row is its out-of-vocabulary id. A method that treats the table as any
    `nn.Embedding` works; one that must keep fields apart reads `segments`.
    """

    def __init__(self, segments: list[Segment] | tuple[Segment, ...], dim: int, padding_idx: int | None = 0) -> None:
        self_rows = max(segment.start + segment.rows for segment in segments)
        super().__init__(self_rows, dim, padding_idx=padding_idx)
        self.segments = tuple(Segment(*segment) for segment in segments)


def segments_of(table: nn.Module) -> tuple[Segment, ...]:
    """Return the fields of a table; a plain table is one segment over all its rows."""
    known = getattr(table, "segments", None)
    if known is not None:
        return tuple(known)
    return (Segment("all", 0, int(table.num_embeddings)),)  # type: ignore[arg-type]


def cover(segments: tuple[Segment, ...], rows: int) -> tuple[Segment, ...]:
    """Return `segments` in order with the rows that belong to no field added as segments named ''."""
    parts, end = [], 0
    for segment in sorted(segments, key=lambda item: item.start):
        if segment.start > end:
            parts.append(Segment("", end, segment.start - end))
        parts.append(segment)
        end = segment.start + segment.rows
    if end < rows:
        parts.append(Segment("", end, rows - end))
    return tuple(parts)


def block_of(ids: Tensor, blocks: Sequence[Segment]) -> Tensor:
    """Return which block each id lies in: integers [*] to int64 [*].

    Args:
        blocks: as `cover` returns them, the first from row 0 on; ids behind the last count to it.
    """
    starts = torch.tensor([block.start for block in blocks], dtype=ids.dtype, device=ids.device)
    return torch.bucketize(ids.contiguous(), starts[1:], right=True)


def located(ids: Tensor, blocks: Sequence[Segment]) -> tuple[Tensor, Tensor]:
    """Return which block each id lies in, int64 [*], and the id counted from the block's first row [*]."""
    block = block_of(ids, blocks)
    starts = torch.tensor([one.start for one in blocks], dtype=ids.dtype, device=ids.device)
    return block, ids - starts[block]


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `rows` [B, L, d] over the positions where `mask` [B, L] holds; zero where none does."""
    weight = mask.to(rows.dtype)
    share = weight / weight.sum(dim=1, keepdim=True).clamp(min=1.0)
    return torch.bmm(share.unsqueeze(1), rows).squeeze(1)
