"""DLRM: numbers through a bottom MLP, products of all vectors into a top MLP (arXiv 1906.00091)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.tasks.ctr.layers import FieldVectors, InnerProducts, mlp


class DLRM(nn.Module):
    """y = bottom MLP(numbers); logit = top MLP([y ; <a, b> for all pairs of y, e_1 .. e_f]).

    There is no y without numeric fields, and the top MLP sees the products only. Products are in upper-triangular
    order, row by row, y first; the official code's order is lower-triangular. The top MLP sees the vectors themselves,
    [y ; e_1 .. e_f], with interaction "cat".
    """

    def __init__(
        self,
        layout: Layout,
        dim: int = 10,
        interaction: Literal["dot", "cat"] = "dot",
        bottom: Sequence[int] = (64,),
        bottom_dropout: float = 0.0,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        batch_norm: bool = True,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        numbers = len(layout.numeric)
        self.vectors = FieldVectors(replace(layout, numeric=()), dim, std)
        self.bottom = _bottom(numbers, bottom, dim, bottom_dropout, batch_norm) if numbers else None
        count = self.vectors.count + bool(numbers)
        self.products = InnerProducts(count) if interaction == "dot" else None
        width = count * dim if self.products is None else self.products.outputs + (dim if numbers else 0)
        self.top = mlp(width, hidden, dropout=dropout, batch_norm=batch_norm)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        vectors = self.vectors(ids)
        if self.bottom is not None:
            vectors = torch.cat([self.bottom(numeric).unsqueeze(1), vectors], dim=1)
        if self.products is None:
            joined = vectors.flatten(1)
        elif self.bottom is None:
            joined = self.products(vectors)
        else:
            joined = torch.cat([vectors[:, 0], self.products(vectors)], dim=1)
        return self.top(joined).squeeze(1)  # type: ignore[no-any-return]


def _bottom(numbers: int, hidden: Sequence[int], dim: int, dropout: float, batch_norm: bool) -> nn.Sequential:
    """Return the MLP of the numbers; its output, a vector of width `dim`, has a ReLU but no BatchNorm or dropout."""
    return mlp(numbers, hidden, dropout=dropout, batch_norm=batch_norm, outputs=dim).append(nn.ReLU())
