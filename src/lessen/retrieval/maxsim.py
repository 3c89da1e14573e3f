"""Exact late interaction behind an int8 screen whose errors are bounded, so that no document is missed.

A document's score is the sum over query tokens q of the largest <q, p> over its tokens p (Chamfer similarity, MaxSim).
With q' and p' the vectors that int8 codes stand for,

    |<q, p> - <q', p'>|  <=  |q'| |p - p'| + |q - q'| |p|,

and a maximum moves by no more than what it is taken over. The screen scores every document in integers; those whose
score may reach the k-th best exact one are scored in float32. The result is what float32 alone gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.errors import DataError, NonFiniteError
from lessen.retrieval.kernels import chamfer_kernel, maxsim_kernel
from lessen.stored.vectors.flat import integer_products, rounded
from lessen.stored.vectors.token_sets import TokenSets

MORE = 16
"""Documents beyond k that are scored exactly before the bound is applied."""


@dataclass(frozen=True)
class Best:
    """The best documents of a query, best first; of equal scores the earlier document comes first."""

    scores: Tensor
    """Exact, float32 [k]."""
    numbers: Tensor
    """Of documents, int64 [k]."""
    rescored: int
    """Documents that were scored in float32."""


class Screen:
    """Scores queries against documents by their codes. What the kernel needs beside the codes is made once."""

    def __init__(self, sets: TokenSets) -> None:
        self.sets = sets
        compiled = sets.dim % 4 == 0 and maxsim_kernel.available()
        self._every = torch.arange(sets.rows)
        self._added = maxsim_kernel.corrections(sets.codes) if compiled else None

    def scores(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return approximate scores and what each may be wrong by, float32 [rows] twice, for float [Q, dim]."""
        sets = self.sets
        codes, steps = rounded(query)
        held = codes.float() * steps[:, None]
        best = self._compiled(codes) if self._added is not None else self._plain(codes)
        kept, wrong = held.norm(dim=1).sum(), (query - held).norm(dim=1).sum()
        rounding = 2 * (sets.dim + 8) * 2.0**-24 * (kept + wrong)
        return best @ steps, sets.errors * kept + sets.longest * (wrong + rounding)

    def _compiled(self, codes: Tensor) -> Tensor:
        sets, packed = self.sets, maxsim_kernel.packed_queries(codes)
        assert self._added is not None
        found = maxsim_kernel.best_products(packed, sets.codes, sets.scales, self._added, sets.starts, self._every)
        return found[:, : len(codes)]

    def _plain(self, codes: Tensor) -> Tensor:
        sets = self.sets
        products = integer_products(sets.codes, codes) * sets.scales[:, None]
        return torch.segment_reduce(products, "max", lengths=sets.lengths, axis=0)


def _tokens_of(sets: TokenSets, documents: Tensor) -> Tensor:
    """Return the numbers of all tokens of documents, int64 [n], one document after the other."""
    lengths = sets.lengths[documents]
    ends = lengths.cumsum(0)
    within = torch.arange(int(ends[-1])) - (ends - lengths).repeat_interleave(lengths)
    return sets.starts[documents].repeat_interleave(lengths) + within


def chamfer(query: Tensor, sets: TokenSets, documents: Tensor) -> Tensor:
    """Return the exact scores of documents, int64 [n], for a query, float [Q, dim]: float32 [n]."""
    if chamfer_kernel.available():
        return chamfer_kernel.best_products(query, sets.tokens, sets.starts, documents).sum(dim=1)
    lengths, tokens = sets.lengths[documents], sets.tokens[_tokens_of(sets, documents)]
    return torch.segment_reduce(tokens @ query.t(), "max", lengths=lengths, axis=0).sum(dim=1)


def search(query: Tensor, screen: Screen, k: int) -> Best:
    """Return the k best documents of all, exactly.

    Args:
        query: float [Q, dim], a vector a token.

    Raises:
        DataError: it is empty or of another width. NonFiniteError: it holds NaN or infinity.
    """
    query = checked_query(query, screen.sets.dim)
    rows, k = screen.sets.rows, min(k, screen.sets.rows)
    scores, wrong = screen.scores(query)
    first = scores.topk(min(rows, k + MORE)).indices
    exact = chamfer(query, screen.sets, first)
    reach = exact.topk(k).values[-1]
    possible = scores + wrong >= reach
    possible[first] = False
    others = possible.nonzero()[:, 0]
    numbers = torch.cat([first, others])
    if len(others):
        exact = torch.cat([exact, chamfer(query, screen.sets, others)])
    return _best(exact, numbers, k)


def rescore(query: Tensor, sets: TokenSets, documents: Tensor, k: int, threshold: float | None = None) -> Best:
    """Return the k best of some documents, int64 [n], by the exact score.

    Args:
        threshold: carve the query first (see `carved`); scores are then those of the carved query.
    """
    query = checked_query(query, sets.dim)
    asked = query if threshold is None else carved(query, threshold)
    return _best(chamfer(asked, sets, documents), documents, min(k, len(documents)))


def carved(query: Tensor, threshold: float = 0.7) -> Tensor:
    """Return fewer vectors for a query, float [Q, dim]: balls of tokens become their sums (MUVERA, section 3).

    The first token left gathers every token left whose product with it is at least `threshold`.
    """
    near = query @ query.t() >= threshold
    left = torch.ones(len(query), dtype=torch.bool)
    sums = []
    for centre in range(len(query)):
        if left[centre]:
            ball = near[centre] & left
            ball[centre] = True
            sums.append(query[ball].sum(dim=0))
            left &= ~ball
    return torch.stack(sums)


def checked_query(query: Tensor, dim: int) -> Tensor:
    """Return a query as float32 [Q, dim]. Raises DataError, NonFiniteError."""
    if query.dim() != 2 or not len(query) or query.shape[1] != dim:
        raise DataError(f"a query of shape {list(query.shape)} does not fit: give [1 or more tokens, {dim}]")
    if not bool(query.isfinite().all()):
        raise NonFiniteError("the query holds NaN or infinity")
    return query.float().contiguous()


def _best(scores: Tensor, numbers: Tensor, k: int) -> Best:
    by_number = numbers.argsort()
    order = by_number[scores[by_number].sort(descending=True, stable=True).indices[:k]]
    return Best(scores[order], numbers[order], len(numbers))
