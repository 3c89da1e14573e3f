"""Metrics of retrieval, one number a query, and what makes them: where the relevant documents stand in each ranking.

Documents are ordered by falling score; of equal scores the earlier document comes first. Gains are the grades
themselves, as in trec_eval; the discount of rank r is 1 / log2(r + 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lessen.metrics.base import Floats, MeanMetric
from lessen.metrics.outcomes import Array, Outcomes


class _PerQuery(MeanMetric):
    """Mean over queries of a column that the judge has made."""

    def each(self, outcomes: Outcomes) -> Floats:
        """Return the value of each query."""
        return outcomes[self.reads[0]].astype(np.float64)


class Recall(_PerQuery):
    """Share of a query's relevant documents among its first k."""

    name = "recall"

    def __init__(self, k: int) -> None:
        self.name = self.title = f"recall@{k}"
        self.reads = (self.name,)


class NDCG(_PerQuery):
    """Discounted gain of the first k documents as a share of the best possible."""

    name = "ndcg"

    def __init__(self, k: int) -> None:
        self.name, self.title = f"ndcg@{k}", f"nDCG@{k}"
        self.reads = (self.name,)


class MRR(_PerQuery):
    """Reciprocal rank of the first relevant document."""

    name, title = "mrr", "MRR"
    reads = ("mrr",)


class MeanAveragePrecision(_PerQuery):
    """Precision at each relevant document, averaged over them; the mean over queries."""

    name, title = "map", "mAP"
    reads = ("map",)


def ranked(
    scores: Array, grades: Array, recalls: Sequence[int] = (1, 10), depths: Sequence[int] = (10,)
) -> dict[str, Floats]:
    """Return the columns `recall@k`, `ndcg@k`, `mrr` and `map`, float64 [queries] each.

    Args:
        scores: [queries, documents], higher is nearer.
        grades: [queries, documents], 0 for what is not relevant; each query has at least one relevant document.
    """
    order = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")
    known = grades.astype(np.float64)
    gains = np.take_along_axis(known, order, axis=1)
    found, relevant = gains > 0, (known > 0).sum(axis=1)
    columns = {f"recall@{k}": found[:, :k].sum(axis=1) / relevant for k in recalls}
    best = -np.sort(-known, axis=1)
    for k in depths:
        columns[f"ndcg@{k}"] = _discounted(gains, k) / _discounted(best, k)
    precision = found.cumsum(axis=1) / np.arange(1, found.shape[1] + 1)
    columns["map"] = (precision * found).sum(axis=1) / relevant
    columns["mrr"] = 1.0 / (found.argmax(axis=1) + 1)
    return columns


def _discounted(gains: Floats, k: int) -> Floats:
    first = gains[:, :k]
    sums: Floats = first @ (1.0 / np.log2(np.arange(2, first.shape[1] + 2)))
    return sums
