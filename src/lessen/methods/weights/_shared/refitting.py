"""Grids fitted again to the codes that a calibrated rounding chose: least squares under the curvature, row by row.

    row of weights w, levels b_i of its codes       q_i = s_g b_i + m_g     for input i of group g
    least (w - q) H (w - q)^T over all s and m      one linear system of 2 x groups unknowns a row

Rounding then starts again on the new grid, from the original weights; a row keeps what errs less. The problem is linear
and its solution closed once codes are fixed: no descent, and no data beyond the curvature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.methods.weights._shared.error_feedback import Feedback, round_with_feedback
from lessen.stored.linears.coded_scales import on_coded_scales
from lessen.stored.linears.group_grid import GroupGrid

HELD = 1 << 21
"""Numbers of one temporary at most: rows are done in parts."""
RIDGE = 1e-3
"""Share of each unknown's own curvature that is added to it, towards the scale or minimum that was."""
HALF_MAX = 65_504.0


@dataclass(frozen=True)
class Rounded:
    """Codes uint8 [out, in] on a grid, and the error of each row under the damped curvature, float32 [out]."""

    codes: Tensor
    grid: GroupGrid
    error: Tensor


def rounds(weight: Tensor, grid: GroupGrid, spread: Feedback, count: int) -> Rounded:
    """Round a weight [out, in], fit its grid to the codes again, and so on `count` times; 0 only rounds."""
    weight = weight.detach().float()
    best = _judged(weight, round_with_feedback(weight, grid, spread), grid, spread)
    for number in range(count):
        grid = fitted(weight, best.codes, best.grid, spread)
        best = _better(best, _judged(weight, best.codes, grid, spread))
        if number + 1 < count:
            codes = round_with_feedback(weight, best.grid, spread)
            best = _better(best, _judged(weight, codes, best.grid, spread))
    return best


def fitted(weight: Tensor, codes: Tensor, grid: GroupGrid, spread: Feedback) -> GroupGrid:
    """Return the grid with the least error for these codes, near the given one where the curvature says nothing."""
    damped = _damped(spread)
    inputs, groups = weight.shape[1], grid.scales.shape[1]
    padding = groups * grid.group - inputs
    damped = F.pad(damped, (0, padding, 0, padding))
    ones = damped.view(groups, grid.group, groups, grid.group).sum((1, 3)).double()
    step = max(1, HELD // (groups * grid.group * 4))
    turns = [slice(first, first + step) for first in range(0, len(weight), step)]
    parts = [_rows(weight[turn], codes[turn], grid.rows(turn), damped, ones) for turn in turns]
    scales = torch.cat([scale for scale, _ in parts])
    minimums = None if grid.minimums is None else torch.cat([m for _, m in parts])
    made = GroupGrid(grid.bits, grid.group, scales, minimums)
    return made if grid.scale_bits is None else on_coded_scales(made, grid.scale_bits)


def _rows(weight: Tensor, codes: Tensor, grid: GroupGrid, damped: Tensor, ones: Tensor) -> tuple[Tensor, Tensor]:
    """Return (scales, minimums), fp16 [rows, groups], of some rows; minimums of a symmetric grid are not used."""
    rows, groups = grid.scales.shape
    padding = groups * grid.group - weight.shape[1]
    levels = codes.float() - (1 << (grid.bits - 1) if grid.minimums is None else 0)
    levels, change = (F.pad(each, (0, padding)) for each in (levels, weight - grid.values(codes)))

    def by_group(values: Tensor) -> Tensor:
        return values.view(rows, groups, grid.group).sum(2).double()

    own = torch.empty(rows, groups, groups, dtype=torch.float64, device=weight.device)
    cross = torch.empty_like(own)
    for number in range(groups):
        part = slice(number * grid.group, (number + 1) * grid.group)
        pulled = levels[:, part] @ damped[part]
        own[:, number], cross[:, number] = by_group(pulled * levels), by_group(pulled)
    pull = change @ damped
    if grid.minimums is None:
        return _half(grid.scales, _solved(own, by_group(pull * levels))), grid.scales
    system = torch.cat(
        [torch.cat([own, cross], 2), torch.cat([cross.transpose(1, 2), ones.expand(rows, -1, -1)], 2)], 1
    )
    moved = _solved(system, torch.cat([by_group(pull * levels), by_group(pull)], 1))
    return _half(grid.scales, moved[:, :groups]), _half(grid.minimums, moved[:, groups:])


def _solved(system: Tensor, right: Tensor) -> Tensor:
    """Return the solution of symmetric systems, zero where an unknown has no curvature."""
    own = system.diagonal(dim1=1, dim2=2)
    least = own.mean(1, keepdim=True) * 1e-9 + torch.finfo(torch.float32).tiny
    damped = system + torch.diag_embed(RIDGE * own + least)
    factor, failed = torch.linalg.cholesky_ex(damped)
    found = torch.cholesky_solve(right.unsqueeze(2), factor).squeeze(2)
    return torch.where((failed == 0).unsqueeze(1) & found.isfinite(), found, 0.0).float()


def _half(before: Tensor, moved: Tensor) -> Tensor:
    """Return fp16 values moved, those that fp16 cannot hold left where they were."""
    now = before.float() + moved
    return torch.where(now.abs() <= HALF_MAX, now, before.float()).half()


def _damped(spread: Feedback) -> Tensor:
    damped = spread.curvature.float().clone()
    damped.diagonal().add_(spread.damping)
    return damped


def _judged(weight: Tensor, codes: Tensor, grid: GroupGrid, spread: Feedback) -> Rounded:
    change = grid.values(codes) - weight
    return Rounded(codes, grid, ((change @ spread.curvature.float() + spread.damping * change) * change).sum(1))


def _better(one: Rounded, other: Rounded) -> Rounded:
    """Return the rows of `other` where they err less, else those of `one`."""
    pick = other.error < one.error
    rows = pick.unsqueeze(1)
    minimums = None
    if one.grid.minimums is not None and other.grid.minimums is not None:
        minimums = torch.where(rows, other.grid.minimums, one.grid.minimums)
    scales = torch.where(rows, other.grid.scales, one.grid.scales)
    grid = GroupGrid(one.grid.bits, one.grid.group, scales, minimums, one.grid.scale_bits)
    return Rounded(torch.where(rows, other.codes, one.codes), grid, torch.where(pick, other.error, one.error))
