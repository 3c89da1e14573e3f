"""Rounding one input column after another, each error made good by the columns that are still to come.

    columns   0 1 2 | 3 4 5 | 6 7 8        in the order of the inputs, or of their curvature
              q e>e   . . .   . . .        an error e of one column moves the rest of its block at once,
              = = =   >>> one product >>>  and the later blocks when the block is done

Equations: GPTQ (Frantar et al. 2022, arXiv 2210.17323). The error of column i is e = (w - q) / U_ii and column j moves
by -e U_ij, with U upper triangular and U^T U the inverse of the damped curvature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.errors import NonFiniteError
from lessen.stored.linears.group_grid import GroupGrid, decode, nearest

BLOCK = 128
"""Columns after which the rest of the weight is moved; it changes no result but by rounding of floats."""
STRONGER = 10.0
"""Factor of the damping after each failed factorisation."""
TRIES = 6


@dataclass(frozen=True)
class Feedback:
    """How errors spread: the order of columns int64 [in], and U float32 [in, in] in that order.

    The curvature [in, in] that U comes from is held with it, in the order of the inputs, and so is what was added to
    its diagonal.
    """

    order: Tensor
    upper: Tensor
    curvature: Tensor
    damping: float


def feedback(curvature: Tensor, damping: float, by_curvature: bool) -> Feedback:
    """Return how errors spread under a curvature [in, in], symmetric and not negative.

    An input without curvature gets one of its own: its weights are rounded to nearest and move nothing.

    Args:
        damping: share of the mean diagonal, zeros aside, that is added to it; ten times more, and again, where the sum
            has no Cholesky factor.
        by_curvature: columns in falling order of the diagonal, in place of that of the inputs.

    Raises:
        NonFiniteError: the curvature holds NaN or infinity, or has no factor at 10^5 times the damping.
    """
    diagonal = curvature.diagonal()
    order = torch.arange(len(diagonal), device=curvature.device)
    if by_curvature:
        order = torch.argsort(diagonal, descending=True, stable=True)
    # H = R R^T with R upper triangular comes from the Cholesky factor of H in reverse order, and U is the inverse of R
    reverse = order.flip(0)
    seen = diagonal != 0
    mean = float(diagonal[seen].double().mean()) if bool(seen.any()) else 1.0
    for power in range(TRIES):
        damped = _in_order(curvature, reverse)
        own = damped.diagonal()
        own[own == 0] = mean
        added = damping * mean * STRONGER**power
        own += added
        if _factor(damped):
            inverse = damped.t()
            _invert(inverse)
            upper = torch.empty_like(curvature, dtype=torch.float32)
            for start in range(0, len(order), BLOCK):  # a few rows at a time: two float64 matrices are never held
                end = min(start + BLOCK, len(order))
                upper[start:end] = inverse[len(order) - end : len(order) - start].flip(0, 1)
            return Feedback(order, upper, curvature, added)
    raise NonFiniteError("the curvature of a layer's inputs has no Cholesky factor; calibrate on other data")


def _in_order(curvature: Tensor, order: Tensor) -> Tensor:
    """Return a copy in float64 whose rows and columns are in another order, [in, in]."""
    made = torch.empty(curvature.shape, dtype=torch.float64, device=curvature.device)
    for start in range(0, len(order), BLOCK):
        made[start : start + BLOCK] = curvature[order[start : start + BLOCK]][:, order]
    return made


def _factor(matrix: Tensor) -> bool:
    """Put the Cholesky factor of a symmetric matrix in its place, transposed, and tell whether there is one."""
    columns, failed = matrix.t(), torch.empty(0, dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(columns, out=(columns, failed))  # in place where columns are contiguous
    return not int(failed)


def _invert(lower: Tensor) -> None:
    """Put the inverse of a lower triangular matrix in its place.

    Halves: the inverse of [[A, 0], [B, C]] is [[A', 0], [-C' B A', C']], with A' and C' the inverses of A and C.
    """
    size = len(lower)
    if size <= BLOCK:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, second, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert(first)
    _invert(second)
    for start in range(
        0, half, BLOCK
    ):  # columns of B A', from the left: A' is lower, so that later ones stay to be read
        end = min(start + BLOCK, half)
        below[:, start:end] = below[:, start:] @ first[start:, start:end]
    for end in range(len(second), 0, -BLOCK):  # rows of C' times that, from the bottom: C' is lower too
        start = max(0, end - BLOCK)
        below[start:end] = -(second[start:end, :end] @ below[:end])


def round_with_feedback(weight: Tensor, grid: GroupGrid, spread: Feedback, block: int = BLOCK) -> Tensor:
    """Return codes uint8 [out, in] of a weight [out, in] on a grid that was fixed before."""
    order = spread.order
    inputs = len(order)
    groups = order // grid.group
    left = weight.detach().float().t()[order].contiguous()  # [in, out]: what each column has become
    scales = grid.scales.t().float()
    minimums = None if grid.minimums is None else grid.minimums.t().float()
    codes = torch.empty(inputs, weight.shape[0], dtype=torch.uint8, device=weight.device)
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        errors = torch.empty_like(left[start:end])
        for column in range(start, end):
            scale = scales[groups[column]]
            minimum = None if minimums is None else minimums[groups[column]]
            code = nearest(left[column], scale, minimum, grid.bits)
            error = (left[column] - decode(code, scale, minimum, grid.bits)) / spread.upper[column, column]
            left[column + 1 : end] -= torch.outer(spread.upper[column, column + 1 : end], error)
            codes[order[column]] = code.to(torch.uint8)
            errors[column - start] = error
        left[end:] -= spread.upper[start:end, end:].t() @ errors
    return codes.t().contiguous()


def output_error(change: Tensor, curvature: Tensor) -> float:
    """Return tr(D H D^T), what a change D [out, in] of a weight does to squared outputs under H [in, in]."""
    change = change.float()
    return float((change @ curvature.float()).mul_(change).double().sum())
