"""Logistic regression: one weight an id, the floor of every comparison (WWW 2007)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.tasks.ctr.layers import FieldVectors


class LogisticRegression(nn.Module):
    """logit = bias + sum_i w_i; a pooled field adds the mean weight of its ids. `dim` has no meaning here."""

    def __init__(self, layout: Layout, dim: int = 1, std: float = 0.01) -> None:  # noqa: ARG002 - same call for all
        super().__init__()
        self.vectors = FieldVectors(layout, 1, std)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        return self.bias + self.vectors(ids, numeric).sum(dim=(1, 2))  # type: ignore[no-any-return]
