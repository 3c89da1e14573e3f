"""One flat table for many categorical fields: ids are global, and the table knows which rows are whose."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


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
