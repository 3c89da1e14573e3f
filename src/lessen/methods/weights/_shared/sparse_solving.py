"""Removing weights column after column, each loss made good by the columns that are still to come.

    columns   0 1 2 3 | 4 5 6 7 | ...     a block at a time
              choose which stay: the lowest w^2 / U_jj^2 of the block go (N:M: of each run, when its turn comes)
              x . . x    . .              what is removed, or rounded, moves the rest of the block at once
                         >>> one product >>> and the later blocks when the block is done

Equations: SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774), with U of `error_feedback`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lessen.methods.weights._shared.error_feedback import BLOCK, Feedback
from lessen.sparsity.pattern import Pattern


def remove_with_feedback(
    weight: Tensor, spread: Feedback, pattern: Pattern, scales: Tensor | None = None, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Return what a weight [out, in] has become, float32, and which of it stays, bool.

    Args:
        spread: in the order of the inputs.
        scales: steps of int8 values [out]: kept weights are rounded on the way, and their errors made good too.
    """
    upper, powers = spread.upper, spread.upper.diagonal().square()
    left = weight.detach().float().t().contiguous()  # [in, out]: what each column has become
    stays = torch.ones_like(left, dtype=torch.bool)
    run = pattern.m or 0
    for start, end in _blocks(len(left), block, run):
        if not run:
            stays[start:end] = pattern.mask((left[start:end].square() / powers[start:end, None]).t()).t()
        errors = torch.empty_like(left[start:end])
        for column in range(start, end):
            if run and column % run == 0:
                near = slice(column, column + run)
                stays[near] = pattern.mask((left[near].square() / powers[near, None]).t()).t()
            became = torch.where(stays[column], left[column], 0.0)
            if scales is not None:
                became = torch.round(became / scales).clamp_(-127, 127) * scales
            error = (left[column] - became) / upper[column, column]
            left[column + 1 : end] -= torch.outer(upper[column, column + 1 : end], error)
            left[column], errors[column - start] = became, error
        left[end:] -= upper[start:end, end:].t() @ errors
    return left.t().contiguous(), stays.t().contiguous()


def _blocks(columns: int, block: int, run: int) -> Iterator[tuple[int, int]]:
    """Yield first and last column of each block, which holds whole runs."""
    size = max(block // run, 1) * run if run else block
    for start in range(0, columns, size):
        yield start, min(start + size, columns)
