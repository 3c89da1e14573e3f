"""Rounding in small groups whose scales and zeros are rounded too, with the weights that would err most kept.

Rules: SpQR (Dettmers et al. 2023, arXiv 2306.03078). Each output has a scale s and a zero z for each group of inputs:

    code = round(w / s + z)        value = s (code - z)        z is no whole number

An error e = (w - value) / U_ii counts by its square; what exceeds tau is kept in fp16 and errs no more than that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.methods.weights._shared.error_feedback import BLOCK, Feedback
from lessen.methods.weights._shared.grids import fit_grid, quantise
from lessen.stored.linears.group_grid import GroupGrid
from lessen.stored.linears.spqr import Outliers, Statistics

LEAST = 1e-9
FURTHEST = 60_000.0
"""Largest zero: fp16 holds no more than 65504, and rounding up must stay below it."""


@dataclass(frozen=True)
class Rules:
    """How weights are rounded. `stats_bits` None leaves scales and zeros in float32, which nothing stores.

    `tau_share` is tau as a share of the mean of var(column) / U_ii^2: higher keeps fewer; infinity keeps none.
    """

    bits: int
    group: int
    stats_bits: int | None
    stats_group: int
    tau_share: float
    leave_one_out: bool


@dataclass(frozen=True)
class Rounded:
    """Codes uint8 [out, in] in the order of rounding, statistics of both kinds, and the outliers."""

    codes: Tensor
    scales: Statistics | Tensor
    zeros: Statistics | Tensor
    outliers: Outliers


def round_sparsely(weight: Tensor, spread: Feedback, rules: Rules) -> Rounded:
    """Round a weight [out, in] in the order of `spread`; each group's grid fits what its weights have become."""
    order, upper, top = spread.order, spread.upper, 2**rules.bits - 1
    left = weight.detach().float().t()[order].contiguous()  # [in, out]: what each column has become
    powers = upper.diagonal().square()
    tau = rules.tau_share * float((left.var(dim=1, correction=0) / powers).mean())
    codes, kept = torch.empty_like(left, dtype=torch.uint8), torch.zeros_like(left, dtype=torch.bool)
    statistics: list[tuple[_Row, _Row]] = []
    block = max(1, BLOCK // rules.group) * rules.group
    for start in range(0, len(order), block):
        end = min(start + block, len(order))
        errors = torch.empty_like(left[start:end])
        for column in range(start, end):
            if column % rules.group == 0:
                last = min(column + rules.group, end)
                scale, zero = _fit(left[column:last], powers[column:last], tau, rules)
                statistics.append((scale, zero))
            weights, diagonal = left[column], upper[column, column]
            code = _codes(weights, scale.values, zero.values, top)
            error = (weights - (code - zero.values) * scale.values) / diagonal
            outlier = error.square() > tau
            code = torch.where(outlier, _codes(torch.zeros_like(weights), scale.values, zero.values, top), code)
            error = torch.where(outlier, (weights - weights.half().float()) / diagonal, error)
            left[column + 1 : end] -= torch.outer(upper[column, column + 1 : end], error)
            codes[column], kept[column], errors[column - start] = code.to(torch.uint8), outlier, error
        left[end:] -= upper[start:end, end:].t() @ errors
    scales, zeros = (_stack([pair[which] for pair in statistics]) for which in (0, 1))
    return Rounded(codes.t().contiguous(), scales, zeros, _outliers(left, kept, order))


@dataclass(frozen=True)
class _Row:
    """One statistic of a group: float32 [out], and its codes uint8 [1, out] with their grid where it has some."""

    values: Tensor
    codes: Tensor | None = None
    grid: GroupGrid | None = None


def _codes(weights: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    return (weights / scale.clamp_min(LEAST) + zero).round_().clamp_(0, top)


def _fit(weights: Tensor, powers: Tensor, tau: float, rules: Rules) -> tuple[_Row, _Row]:
    """Return scale and zero of a group [size, out], likely outliers put aside."""
    if rules.leave_one_out and len(weights) > 1 and tau != float("inf"):
        likely = leave_one_out(weights, powers, rules.bits) > tau
        others = (~likely).sum(dim=0)
        middle = torch.where(likely, 0.0, weights).sum(dim=0) / others.clamp_min(1)
        weights = torch.where(likely, middle, weights)
    scale, zero = range_of(weights.amin(dim=0), weights.amax(dim=0), rules.bits)
    return _on_grid(scale, rules), _on_grid(zero, rules)


def range_of(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return (scale, zero) of a range; one of a single value holds that value."""
    single = high <= low
    scale = torch.where(single, low.abs(), (high - low) / (2**bits - 1))
    zero = (-low / scale.clamp_min(LEAST)).clamp(-FURTHEST, FURTHEST)
    return scale, zero


def leave_one_out(weights: Tensor, powers: Tensor, bits: int) -> Tensor:
    """Return what each weight of a group [size, out] costs the others, [size, out].

    It is the sum of ((w - q) / U_jj)^2 of all on their grid, less that of the others on a grid fitted without it.
    """
    size, top = len(weights), 2**bits - 1
    alone = torch.eye(size, dtype=torch.bool, device=weights.device)[:, :, None]
    without_low, without_high = weights.masked_fill(alone, torch.inf), weights.masked_fill(alone, -torch.inf)
    scale, zero = range_of(without_low.amin(dim=1, keepdim=True), without_high.amax(dim=1, keepdim=True), bits)
    away = (_codes(weights, scale, zero, top) - zero) * scale - weights  # [left out, weight, out]
    others = (away.square() / powers[:, None]).masked_fill(alone, 0.0).sum(dim=1)
    scale, zero = range_of(weights.amin(dim=0), weights.amax(dim=0), bits)
    away = (_codes(weights, scale, zero, top) - zero) * scale - weights
    return (away.square() / powers[:, None]).sum(dim=0) - others


def _on_grid(values: Tensor, rules: Rules) -> _Row:
    """Round a statistic [out] to the grid of each run of outputs; scales below zero count as zero, as when decoded."""
    if rules.stats_bits is None:
        return _Row(values)
    grid = fit_grid(values[None], rules.stats_bits, min(rules.stats_group, len(values)), False, "minmax")
    codes = quantise(values[None], grid)
    return _Row(grid.values(codes)[0], codes, grid)


def _stack(rows: list[_Row]) -> Statistics | Tensor:
    grids = [row.grid for row in rows if row.grid is not None]
    if not grids:
        return torch.stack([row.values for row in rows])
    minimums = [grid.minimums for grid in grids if grid.minimums is not None]
    whole = GroupGrid(grids[0].bits, grids[0].group, torch.cat([grid.scales for grid in grids]), torch.cat(minimums))
    return Statistics(torch.cat([row.codes for row in rows if row.codes is not None]), whole)


def _outliers(left: Tensor, kept: Tensor, order: Tensor) -> Outliers:
    """Return the weights that were kept, by output and input."""
    by_input = torch.empty_like(kept).index_copy_(0, order, kept).t()
    rows, columns = by_input.nonzero(as_tuple=True)
    place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    return Outliers(rows, columns, left[place[columns], rows].half())
