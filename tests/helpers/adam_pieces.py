"""Tables that SparseAdam trained, as the bits of their weights and moments."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import settings

ROLES = ("weight", "first", "second")
F32 = dict.fromkeys(ROLES, "F32")
few = settings(max_examples=30, deadline=None)


def trained(rows: int, columns: int, steps: list[int], lr: float = 0.01, betas: tuple[float, float] = (0.9, 0.999)):
    """Train a table with torch's SparseAdam; return the bits before and after the last `len(steps)` steps.

    Args:
        steps: for each of those steps, how many rows from the first on it moves.
    """
    torch.manual_seed(rows)
    table = torch.nn.Embedding(rows, columns, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=lr, betas=betas)

    def step(count: int) -> None:
        optimizer.zero_grad()
        target = torch.randn(count, columns)
        (table(torch.arange(count)) - target).square().sum().backward()
        optimizer.step()

    def bits() -> dict[str, np.ndarray]:
        state = optimizer.state[table.weight]
        arrays = (table.weight.detach(), state["exp_avg"], state["exp_avg_sq"])
        return {r: a.numpy().copy().reshape(-1).view(np.uint32) for r, a in zip(ROLES, arrays, strict=True)}

    for _ in range(3):
        step(rows)
    before = bits()
    for count in steps:
        step(count)
    return bits(), before
