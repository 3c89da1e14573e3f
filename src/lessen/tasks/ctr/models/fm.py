"""Factorisation machine, second order (Rendle, ICDM 2010)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.tasks.ctr.layers import FieldVectors, pairwise_sum, split_first_order


class FactorisationMachine(nn.Module):
    """logit = bias + sum_i w_i + sum_{i<j} <e_i, e_j>, first-order weights in the last column of the table."""

    def __init__(self, layout: Layout, dim: int = 10, std: float = 0.01) -> None:
        super().__init__()
        self.vectors = FieldVectors(layout, dim + 1, std)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        vectors, first = split_first_order(self.vectors(ids, numeric))
        return self.bias + first + pairwise_sum(vectors)
