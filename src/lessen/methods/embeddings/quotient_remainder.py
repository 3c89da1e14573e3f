"""Quotient-remainder trick: every id keeps a vector of its own, composed of two rows from two small tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from lessen.errors import BudgetError
from lessen.method import Card, Context
from lessen.methods.embeddings._shared.budget import TOLERANCE
from lessen.methods.embeddings._shared.retrained import RetrainedTables, Wanted, spread
from lessen.methods.sites import TABLES, blocks
from lessen.stored.tables.quotient_remainder import QuotientRemainderEmbedding, quotient_rows


class QuotientRemainderTables(RetrainedTables):
    """Fields of at least `min_rows` ids share ceil(rows / c) quotient rows and c remainder rows; trained anew.

    Source: Shi et al., KDD 2020 (arXiv 1909.02107). One c for all fields is solved from `ratio` by bisection on
    sum min(rows, ceil(rows / c) + c), as the VLDB 2024 study does. Differences: integer division (the reference
    divides in floating point), vectors are composed before bags are pooled, centred initialisation instead of the
    reference's positive one; concatenation, which halves the width of small exact fields too, is left out.
    """

    card = Card(
        name="emb-qr",
        family="embeddings",
        summary="Compose each id's vector from a quotient row and a remainder row, and retrain.",
        acts_on=TABLES,
        source="Shi et al., KDD 2020, arXiv 1909.02107",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    makes = (QuotientRemainderEmbedding,)
    ratio: float = Field(0.25, gt=0, lt=1, description="rows kept as a share of the table's rows, solved for c")
    operation: Literal["multiply", "add"] = Field("multiply", description="how the two rows are composed")

    def replacement(self, wanted: Wanted, context: Context) -> QuotientRemainderEmbedding:
        """Return a composed table whose vectors start distributed like those of `table`."""
        shape, target = wanted.shape, wanted.target
        large = [block.name != "" and block.rows >= self.min_rows for block in blocks(shape)]
        rows = [block.rows for block in blocks(shape)]
        fixed = sum(size for size, is_large in zip(rows, large, strict=True) if not is_large)
        free = [size for size, is_large in zip(rows, large, strict=True) if is_large]
        if target is None:
            shared = collisions_for(free, self.ratio * sum(rows) - fixed, sum(rows), fixed)
        else:
            shared = nearest_collisions(free, target / (4 * shape.dim) - fixed)
        collisions = [min(shared, size) if is_large else 1 for size, is_large in zip(rows, large, strict=True)]
        made = QuotientRemainderEmbedding(shape, collisions, self.operation)
        made.reset(spread(wanted.table), context.generator)
        return made


def table_rows(sizes: Sequence[int], collisions: int) -> int:
    """Return the rows of both tables for fields of these sizes."""
    return sum(quotient_rows(size, min(collisions, size)) + min(collisions, size) for size in sizes)


def nearest_collisions(sizes: Sequence[int], wanted: float) -> int:
    """Return the c whose tables come nearest to `wanted` rows; of those within the tolerance rather one below."""

    def rank(count: int) -> tuple[float, bool, float]:
        away = table_rows(sizes, count) - wanted
        return max(0.0, abs(away) - TOLERANCE * wanted), away > 0, abs(away)

    return min(range(2, max(2, math.isqrt(max(sizes))) + 1), key=rank)


def collisions_for(sizes: Sequence[int], allowed: float, total: int, fixed: int) -> int:
    """Return the smallest c whose tables have at most `allowed` rows.

    Raises:
        BudgetError: not even c = sqrt(largest field) is small enough; names the smallest reachable ratio.
    """
    low, high = 2, max(2, math.isqrt(max(sizes)))
    if table_rows(sizes, high) > allowed:
        reachable = (min(table_rows(sizes, c) for c in range(2, high + 1)) + fixed) / total
        raise BudgetError(f"emb-qr cannot go below the ratio {reachable:.4g} on a table of {total} rows")
    while low < high:
        middle = (low + high) // 2
        if table_rows(sizes, middle) <= allowed:
            high = middle
        else:
            low = middle + 1
    return low
