"""The truth that an index is judged by: the nearest of all vectors, found by comparing with every one in float32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lessen.metrics.intervals import crossed_interval
from lessen.metrics.outcomes import Outcomes
from lessen.metrics.retrieval import Recall


def nearest(queries: Tensor, batches: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Return scores [Q, k] and numbers int64 [Q, k] of the best rows of all batches, float [n, dim], by products.

    The earlier of two rows with equal scores comes first. Fewer than k columns come back where there are fewer rows.
    """
    scores, numbers, first = torch.zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.int64), 0
    for batch in batches:
        own = queries @ batch.float().t()
        places = torch.arange(first, first + len(batch)).expand(len(queries), -1)
        scores, numbers = merged(scores, numbers, own, places, k)
        first += len(batch)
    return scores, numbers


def merged(left: Tensor, left_numbers: Tensor, right: Tensor, right_numbers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of two lists of scores [Q, *] with their numbers; of equal scores those of the left first."""
    scores, numbers = torch.cat([left, right], dim=1), torch.cat([left_numbers, right_numbers], dim=1)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), numbers.gather(1, order)


def shares(found: Tensor, truth: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return, for each query, the share of true numbers [Q, k] that stand among the found ones [Q, m], float64 [Q]."""
    hits = (truth[:, :, None] == found[:, None, :]).any(dim=2)
    return np.asarray(hits.double().mean(dim=1))


def recall(each: np.ndarray[Any, np.dtype[np.float64]], k: int) -> dict[str, Any]:
    """Return the mean over queries with its 95 % interval: {"recall": r, "low": l, "high": h, "queries": n}.

    The ends are None where the queries give no interval.
    """
    metric = Recall(k)
    low, high = crossed_interval(metric.jackknife(Outcomes({f"recall@{k}": each}))[:, None])
    ends = [None if end is None else round(min(1.0, max(0.0, end)), 4) for end in (low, high)]
    return {"recall": round(float(each.mean()), 4), "low": ends[0], "high": ends[1], "queries": len(each)}
