"""DCN, first version: rank-1 crosses beside an MLP (ADKDD 2017, arXiv 1708.05123)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.tasks.ctr.layers import FieldVectors, linear, mlp


class RankOneCrosses(nn.Module):
    """x_{l+1} = x_0 (w_l^T x_l) + b_l + x_l; no width x width matrix is ever formed."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.weights = nn.ModuleList(linear(width, 1, bias=False) for _ in range(layers))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(layers))

    def forward(self, x0: Tensor) -> Tensor:
        """Return x_L [B, width] for `x0` [B, width]."""
        x = x0
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = x0 * weight(x) + bias + x
        return x


class DCN(nn.Module):
    """logit = w^T [x_L ; last hidden layer of MLP(x_0)] + b."""

    def __init__(
        self,
        layout: Layout,
        dim: int = 10,
        cross_layers: int = 3,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        batch_norm: bool = True,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        self.vectors = FieldVectors(layout, dim, std)
        width = self.vectors.count * dim
        self.cross = RankOneCrosses(width, cross_layers)
        self.deep = mlp(width, hidden, dropout=dropout, batch_norm=batch_norm, outputs=None)
        self.output = linear(width + hidden[-1], 1)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        x0 = self.vectors(ids, numeric).flatten(1)
        return self.output(torch.cat([self.cross(x0), self.deep(x0)], dim=1)).squeeze(1)  # type: ignore[no-any-return]
