"""DCNv2, parallel form: full-rank crosses beside an MLP (WWW 2021, arXiv 2008.13535)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.tasks.ctr.layers import CrossNetwork, FieldVectors, mlp


class DCNv2(nn.Module):
    """ids -> vectors x_0 [B, fields*d] -> crosses x_L and MLP(x_0) side by side -> logit [B]."""

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
        self.cross = CrossNetwork(width, cross_layers)
        self.deep = mlp(width, hidden, dropout=dropout, batch_norm=batch_norm, outputs=None)
        self.output = mlp(width + hidden[-1], (), outputs=1)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        x0 = self.vectors(ids, numeric).flatten(1)
        return self.output(torch.cat([self.cross(x0), self.deep(x0)], dim=1)).squeeze(1)  # type: ignore[no-any-return]
