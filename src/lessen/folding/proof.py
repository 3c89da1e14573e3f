"""Is a folded model the model it was? Both answer the same calls: given ones, parts of their batches, drawn ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lessen.folding.flow import Call, first_rows, leaves, mapped

BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest difference that counts as rounding, relative to the largest answer, by the precision computed in."""


def more_calls(calls: Sequence[Call], generator: torch.Generator, drawn: int = 2) -> list[Call]:
    """Return the calls, each with fewer rows too, and drawn ones: floats of three times the size, ids dealt anew.

    Drawn ids are of the given ones, by position of the last axis, so that they stay inside their tables.
    """
    found = list(calls)
    for call in calls:
        rows = {leaf.shape[0] for leaf in leaves(call) if leaf.dim()}
        if len(rows) == 1 and min(rows) > 1:
            found.append(first_rows(call, min(rows) // 2))
    for _ in range(drawn):
        found += [mapped(call, lambda leaf: _drawn(leaf, generator)) for call in calls]
    return found


@torch.no_grad()
def answers(model: nn.Module, calls: Sequence[Call]) -> list[list[Tensor]]:
    """Return the tensors that a model answers to each call."""
    return [[leaf.detach().clone() for leaf in leaves(model(*_copied(call)[0], **_copied(call)[1]))] for call in calls]


def error(found: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> float:
    """Return the largest difference, relative to the largest value of each answer; infinity for another form."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if len(one) != len(other):
            return math.inf
        for a, b in zip(one, other, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                return math.inf
            worst = max(worst, _difference(a, b))
    return worst


def bound_of(answers: Sequence[Sequence[Tensor]], low_precision: bool) -> float:
    """Return what counts as rounding: of the coarsest floats among the answers, of float32 where some step used it."""
    kinds = {leaf.dtype for call in answers for leaf in call if leaf.is_floating_point()} or {torch.float64}
    coarsest = max(BOUNDS.get(kind, BOUNDS[torch.float16]) for kind in kinds)
    return max(coarsest, BOUNDS[torch.float32]) if low_precision else coarsest


def _difference(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else math.inf
    known = torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), known) or not torch.equal(a[~known].nan_to_num(), b[~known].nan_to_num()):
        return math.inf
    if not bool(known.any()):
        return 0.0
    one, other = a[known].double(), b[known].double()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))


def _drawn(leaf: Tensor, generator: torch.Generator) -> Tensor:
    if leaf.is_floating_point():
        size = leaf.detach().double().std(correction=0).nan_to_num().item() if leaf.numel() else 0.0
        noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.device)
        return (noise * 3.0 * (size or 1.0)).to(leaf.dtype)
    if leaf.dtype is torch.bool or leaf.dim() < 2:
        return leaf
    order = torch.randperm(leaf.shape[0], generator=generator).to(leaf.device)
    turned = leaf.roll(1, 0).clone()
    turned[..., ::2] = leaf[order][..., ::2]
    return turned


def _copied(call: Call) -> Call:
    """Return a call of its own tensors: a model may write over what it is given."""
    made: Call = mapped(call, lambda leaf: leaf.clone())
    return made
