"""Mixed dimension: the larger a field, the narrower its rows, projected back to the common width."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from lessen.method import Card, Context
from lessen.methods.calibration import principal_axes
from lessen.methods.embeddings._shared.budget import size_of
from lessen.methods.embeddings._shared.retrained import Wanted, spread
from lessen.methods.embeddings._shared.trained_form import TrainedQuantizer
from lessen.methods.sites import TABLES, blocks
from lessen.stored.tables.embedding import StoredEmbedding, TableShape
from lessen.stored.tables.mixed_width import MixedWidthEmbedding


class MixedDimensionTables(TrainedQuantizer):
    """Give field f rows of width d * (rows_f / min_rows)^-alpha and a projection to width d, then train.

    Source: Mixed Dimension Embeddings, ISIT 2021 (arXiv 1909.11810), widths by cardinality; fields of up to
    `min_rows` rows stay full, so that the rule is the same for one flat table and for a table a field. Rows start as
    the frequency-weighted principal components of the given model's trained ones; projections of a fresh build are
    orthonormal and stay fixed, which trained best of four initialisations measured. Alpha is solved by bisection where
    `share` is given, then single widths are raised while they fit. Differences: popularity blocks inside a field are
    left out.
    """

    card = Card(
        name="emb-mde",
        family="embeddings",
        summary="Give large fields narrow rows and project them back to the common width.",
        acts_on=TABLES,
        source="ISIT 2021, arXiv 1909.11810",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (MixedWidthEmbedding,)
    counts_ids = True
    alpha: float = Field(0.4, ge=0, le=1, description="temperature: 0 keeps all widths, 1 makes width fall with size")
    power_of_two: bool = Field(False, description="round widths to powers of two (without a share)")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:
        """Return a table of mixed widths, started as the class says."""
        if wanted.target is None:
            widths = self.widths(wanted.shape, self.alpha)
            if self.power_of_two:
                widths = [min(wanted.shape.dim, 2 ** round(math.log2(width))) for width in widths]
        else:
            widths = self._solved(wanted.shape, wanted.target)
        made = MixedWidthEmbedding(wanted.shape, widths)
        if self.start == "given":
            assert wanted.counts is not None
            start_from_rows(made, wanted.table.weight.detach(), wanted.counts)
        else:
            start_fresh(made, spread(wanted.table), context.generator)
        return made

    def widths(self, shape: TableShape, alpha: float) -> list[int]:
        """Return the width of each block; fields of up to `min_rows` rows get the full width."""
        sizes = [max(block.rows, self.min_rows) if block.name else self.min_rows for block in blocks(shape)]
        return power_law(sizes, shape.dim, alpha, self.min_rows)

    def _solved(self, shape: TableShape, target: int) -> list[int]:
        def size(widths: Sequence[int]) -> int:
            return size_of(lambda: MixedWidthEmbedding(shape, list(widths)))

        low, high = 0.0, 8.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if size(self.widths(shape, middle)) > target else (low, middle)
        best = self.widths(shape, high)
        for block in sorted(range(len(best)), key=lambda n: blocks(shape)[n].rows):
            while best[block] < shape.dim:
                wider = [width + (number == block) for number, width in enumerate(best)]
                if abs(size(wider) - target) >= abs(size(best) - target):
                    break
                best = wider
        return best


def power_law(sizes: Sequence[int], dim: int, alpha: float, smallest: int) -> list[int]:
    """Return max(1, round(dim * (size / smallest)^-alpha)) for each size."""
    return [max(1, round(dim * (size / smallest) ** -alpha)) for size in sizes]


def start_from_rows(made: MixedWidthEmbedding, weight: Tensor, counts: Tensor) -> None:
    """Project each block's rows on the leading directions of what lookups see (not centred)."""
    for number, block in enumerate(made.blocks):
        rows = weight[block.start : block.start + block.rows]
        width = made.widths[number]
        if width == made.embedding_dim:
            made.fill(number, rows, None)
            continue
        shares = counts[block.start : block.start + block.rows].double() + 0.1
        wide = rows.double()
        _, axes = principal_axes(wide.t() @ (shares.unsqueeze(1) * wide) / shares.sum())
        basis = axes[:, :width]
        made.fill(number, (wide @ basis).float(), basis.t().float())


def start_fresh(made: MixedWidthEmbedding, std: float, generator: torch.Generator) -> None:
    """Draw rows and fixed orthonormal projections whose products have the deviation of a full table."""
    dim = made.embedding_dim
    for number, block in enumerate(made.blocks):
        width = made.widths[number]
        rows = torch.randn(block.rows, width, generator=generator) * std * math.sqrt(dim / width)
        basis = torch.linalg.qr(torch.randn(dim, width, generator=generator))[0].t() if width < dim else None
        made.fill(number, rows, basis)
    made.projections.requires_grad_(False)
