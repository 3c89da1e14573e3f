"""DLRM: numbers through a bottom MLP, products of all vectors into a top MLP (arXiv 1906.00091)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.tasks.ctr.layers import FieldVectors, InnerProducts, mlp


class DLRM(nn.Module):
    """y = bottom MLP(numbers); logit = top MLP([y ; <a, b> for all pairs of y, e_1 .. e_f]).

    Without numeric fields there is no y, and the top MLP sees the products only. Products are in upper-triangular
    order, row by row, y first; the official code's order is lower-triangular.
    """

    def __init__(
        self,
        layout: Layout,
        dim: int = 10,
        bottom: Sequence[int] = (64,),
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        batch_norm: bool = True,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        numbers = len(layout.numeric)
        self.vectors = FieldVectors(replace(layout, numeric=()), dim, std)
        self.bottom = mlp(numbers, (*bottom, dim), outputs=None) if numbers else None
        self.products = InnerProducts(self.vectors.count + bool(numbers))
        width = self.products.outputs + (dim if numbers else 0)
        self.top = mlp(width, hidden, dropout=dropout, batch_norm=batch_norm)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        vectors = self.vectors(ids)
        if self.bottom is None:
            return self.top(self.products(vectors)).squeeze(1)  # type: ignore[no-any-return]
        dense = self.bottom(numeric)
        products = self.products(torch.cat([dense.unsqueeze(1), vectors], dim=1))
        return self.top(torch.cat([dense, products], dim=1)).squeeze(1)  # type: ignore[no-any-return]
