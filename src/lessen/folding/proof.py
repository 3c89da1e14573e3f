"""Is a folded model the model it was? Both answer the same calls: given ones, parts of their batches, drawn ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lessen.folding.flow import Call, copied_call, first_rows, leaves, mapped

BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest difference that counts as rounding, relative to the largest answer, by the precision computed in."""


def more_calls(calls: Sequence[Call], generator: torch.Generator, drawn: int = 2) -> list[Call]:
    """Return the calls, each with fewer rows too, drawn ones, and the first in other lengths.

    Drawn floats are of three times the size; drawn ids are of the given ones, by position of the last axis, so that
    they stay inside their tables. What a part makes of a length that it is told shows in a call of another length.
    """
    found = list(calls)
    for call in calls:
        rows = {leaf.shape[0] for leaf in leaves(call) if leaf.dim()}
        if len(rows) == 1 and min(rows) > 1:
            found.append(first_rows(call, min(rows) // 2))
    for _ in range(drawn):
        found += [mapped(call, lambda leaf: _drawn(leaf, generator)) for call in calls]
    return found + [other for axis in (0, 1, -1) if (other := _resized(calls[0], axis)) is not None]


@torch.no_grad()
def answers(model: nn.Module, calls: Sequence[Call]) -> list[list[Tensor]]:
    """Return the tensors that a model answers to each call."""
    found = []
    for call in calls:
        arguments, keywords = copied_call(call)
        found.append([leaf.detach().clone() for leaf in leaves(model(*arguments, **keywords))])
    return found


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


def _resized(call: Call, axis: int) -> Call | None:
    """Return a call of another length, or None: half of it, or twice a length of 1.

    The length is that of an axis of the first tensor that has one besides rows; all axes of the same length are its
    own, as those of a mask are, except that rows are rows.
    """
    first = next((leaf for leaf in leaves(call) if leaf.dim() > axis % 3), None)
    if first is None or not first.numel():
        return None
    side = first.shape[axis]

    def change(leaf: Tensor) -> Tensor:
        axes = range(1) if axis == 0 else range(1, leaf.dim())
        for one in axes:
            if one < leaf.dim() and leaf.shape[one] == side:
                leaf = leaf.narrow(one, 0, side // 2) if side > 1 else torch.cat([leaf, leaf], one)
        return leaf

    made: Call = mapped(call, change)
    return made


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
