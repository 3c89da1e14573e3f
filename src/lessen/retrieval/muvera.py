"""MUVERA: a set of token vectors as one vector whose inner product with a query's estimates their Chamfer similarity.

Source: Dhulipala, Hadian, Jayaram, Lee and Mirrokni 2024, arXiv 2405.19504, and its code (google/graph-mining). Random
hyperplanes cut space into 2^bits cells; a query's block of a cell is the SUM of its points there, a document's their
MEAN, and where it has none, its point whose bits differ least from the cell's (`fill`; of several the first). Blocks
are projected and set side by side, `repetitions` times; the product estimates `repetitions` times the similarity.

Differences: cells are spelled by plain bits (the paper allows any spelling; a widely used port mixes two, and from 3
bits on fills cells wrongly); hyperplanes, projections and the last sketch come from streams of their own; the sign of a
product that float32 cannot tell is taken in float64, so that a document's cells do not depend on its batch; points are
added up before they are projected, which is the same sum; projections are dense (the paper) or sketches of one signed
entry a number (its code).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lessen.errors import ConfigError, DataError, NonFiniteError
from lessen.files import canonical, digest
from lessen.retrieval.kernels import cells_kernel
from lessen.stored.vectors.token_sets import TokenSets

POINTS = 1 << 13
"""Points that are encoded together."""


@dataclass(frozen=True)
class Encoding:
    """Sizes of an encoding; two encodings may be compared where all of them agree (`identity`).

    Args:
        dim: numbers of a token vector; repetitions, bits: R and k_sim of the paper, 2^bits cells each.
        projected: numbers of a block, at most dim; equal to dim means that blocks are not projected.
        final: numbers of the whole encoding after a count sketch, or None.
        fill: whether a document's empty cells take its nearest point. Decisive where vectors share a direction.
        inner: `dense` (+-1 / sqrt(projected)) or `sketch` (one signed entry of each number).
    """

    dim: int
    repetitions: int = 20
    bits: int = 5
    projected: int = 16
    final: int | None = None
    fill: bool = True
    inner: Literal["dense", "sketch"] = "dense"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("dim", 1, 1 << 16),
            ("repetitions", 1, 1000),
            ("bits", 0, 8),
            ("projected", 1, self.dim),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} = {value} is not accepted: it must lie between {low} and {high}")
        if self.final is not None and self.final < 1:
            raise ConfigError(f"final = {self.final} is not accepted: it must be at least 1")

    @property
    def raw(self) -> int:
        """Numbers before the last sketch."""
        return self.repetitions * (1 << self.bits) * self.projected

    @property
    def width(self) -> int:
        """Numbers of an encoding."""
        return self.raw if self.final is None else self.final

    @property
    def identity(self) -> dict[str, Any]:
        """What an index of encodings carries as its encoder: queries of other draws do not mix with it."""
        said = {**asdict(self), "draws": "torch.Generator, one stream a matrix"}
        return {"kind": "muvera", "name": f"muvera {self.width}", **said, "digest": digest(canonical(said))}


class Encoder:
    """The draws of an encoding, and what is made with them."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = own = encoding
        self.hyperplanes = torch.randn(own.dim, own.repetitions * own.bits, generator=_stream(own.seed, 0))
        self.planes = self._planes(_stream(own.seed, 1))
        stream = _stream(own.seed, 2)
        self.slots = torch.randint(0, own.final or 1, (own.raw,), generator=stream)
        self.signs = (torch.randint(0, 2, (own.raw,), generator=stream) * 2 - 1).float()
        self._lengths = self.hyperplanes.norm(dim=0)

    def documents(self, sets: TokenSets) -> Tensor:
        """Return the encodings of documents, float32 [rows, width]."""
        return self._encode(sets.tokens, sets.starts, True)

    def queries(self, queries: list[Tensor]) -> Tensor:
        """Return the encodings of queries, float [tokens, dim] each: float32 [queries, width].

        Raises:
            DataError: one is empty or of another width. NonFiniteError: one holds NaN or infinity.
        """
        for number, one in enumerate(queries):
            if one.dim() != 2 or not len(one) or one.shape[1] != self.encoding.dim:
                raise DataError(f"query {number} has shape {list(one.shape)}, not [1 or more, {self.encoding.dim}]")
            if not bool(one.isfinite().all()):
                raise NonFiniteError(f"query {number} holds NaN or infinity")
        lengths = torch.tensor([0, *(len(one) for one in queries)])
        return self._encode(torch.cat(queries).float(), lengths.cumsum(0), False)

    def products(self, points: Tensor) -> Tensor:
        """Return the products of points [T, dim] with all hyperplanes, float32 [T, R * bits + 16], signs exact.

        The last 16 columns hold nothing: whoever reads eight products at once may read past the end.
        """
        found = torch.empty(len(points), self.hyperplanes.shape[1] + 16)
        own = found[:, : self.hyperplanes.shape[1]]
        torch.mm(points, self.hyperplanes, out=own)
        if own.numel():
            # far beyond what rounding can move a sum of `dim` products by
            limit = self.encoding.dim * 2.0**-23 * float(self._lengths.max()) * float(points.norm(dim=1).max())
            compiled = cells_kernel.available()
            near = cells_kernel.doubtful(found, own.shape[1], limit) if compiled else (own.abs() <= limit).nonzero()
            row, column = near.unbind(1)
            if len(row):
                exact = (points[row].double() * self.hyperplanes.t()[column].double()).sum(dim=1)
                own[row, column] = exact.sign().float() * limit
        return found

    def cells(self, points: Tensor) -> Tensor:
        """Return the cell of each point in each repetition, int64 [T, R]: bit j is set where product j is above 0."""
        own = self.encoding
        above = self.products(points)[:, : own.repetitions * own.bits].view(len(points), own.repetitions, own.bits) > 0
        spelled: Tensor = above.long() << torch.arange(own.bits)
        cells: Tensor = spelled.sum(dim=2)
        return cells

    def _planes(self, stream: torch.Generator) -> Tensor:
        """Return the projection of each repetition, float32 [R, dim, projected]."""
        own = self.encoding
        if own.projected == own.dim:
            return torch.eye(own.dim).expand(own.repetitions, -1, -1).contiguous()
        shape = (own.repetitions, own.dim, own.projected)
        if own.inner == "dense":
            return (torch.randint(0, 2, shape, generator=stream) * 2 - 1).float() / math.sqrt(own.projected)
        slots = torch.randint(0, own.projected, (*shape[:2], 1), generator=stream)
        signs = (torch.randint(0, 2, (*shape[:2], 1), generator=stream) * 2 - 1).float()
        return torch.zeros(shape).scatter_(2, slots, signs)

    def _encode(self, points: Tensor, starts: Tensor, document: bool) -> Tensor:
        own = self.encoding
        made = torch.empty(len(starts) - 1, own.width)
        compiled = cells_kernel.takes(own.dim, own.projected, own.bits)
        first = 0
        while first < len(made):
            last = max(first + 1, int(torch.searchsorted(starts, starts[first] + POINTS, right=True)) - 1)
            last = min(last, len(made))
            low, high = int(starts[first]), int(starts[last])
            part, ends = points[low:high].contiguous(), starts[first : last + 1] - low
            raw = made[first:last] if own.final is None else torch.empty(last - first, own.raw)
            if compiled:
                cells_kernel.encode(
                    self.products(part), part, self.planes, ends, raw,
                    bits=own.bits, document=document, fill=own.fill,
                )  # fmt: skip
            else:
                raw.copy_(cells_encoded(self, part, ends, document))
            if own.final is not None:
                made[first:last] = self._sketched(raw)
            first = last
        return made

    def _sketched(self, raw: Tensor) -> Tensor:
        assert self.encoding.final is not None
        return torch.zeros(len(raw), self.encoding.final).index_add_(1, self.slots, raw * self.signs)


def _stream(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + number)


def cells_encoded(encoder: Encoder, points: Tensor, starts: Tensor, document: bool) -> Tensor:
    """Return raw encodings, float32 [n, raw], by torch's operators alone; `starts` int64 [n + 1]."""
    own, rows, lengths = encoder.encoding, len(starts) - 1, starts.diff()
    count = 1 << own.bits
    owner = torch.repeat_interleave(torch.arange(rows), lengths)
    cells = encoder.cells(points)
    made = torch.empty(rows, own.repetitions, count, own.projected)
    for repetition in range(own.repetitions):
        slots = owner * count + cells[:, repetition]
        sums = torch.zeros(rows * count, own.dim).index_add_(0, slots, points)
        if document:
            counts = torch.bincount(slots, minlength=rows * count)
            sums /= counts.clamp(min=1)[:, None]
            if own.fill:
                empty = counts == 0
                sums[empty] = points[_nearest(slots, rows, count, len(points))[empty]]
        made[:, repetition] = (sums @ encoder.planes[repetition]).view(rows, count, own.projected)
    return made.view(rows, own.raw)


def _nearest(slots: Tensor, rows: int, count: int, points: int) -> Tensor:
    """Return the point whose cell differs from each cell in the fewest bits, of several the first, int64 [rows*count].

    Keys are distance * points + number; after a pass for each bit every cell has seen every other (the distance
    transform of a cube).
    """
    keys = torch.full((rows * count,), 1 << 60).scatter_reduce_(0, slots, torch.arange(points), "amin")
    keys, every = keys.view(rows, count), torch.arange(count)
    for bit in range(count.bit_length() - 1):
        keys = torch.minimum(keys, keys[:, every ^ (1 << bit)] + points)
    return (keys % points).view(-1)
