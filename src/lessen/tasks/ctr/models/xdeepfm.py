"""xDeepFM: compressed interaction network beside first order and MLP (KDD 2018, arXiv 1803.05170)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.tasks.ctr.layers import FieldVectors, linear, mlp, split_first_order


class CompressedInteractions(nn.Module):
    """X^l_h = sum_ij W^{l,h}_ij (X^{l-1}_i * X^0_j) in R^d, each map summed over d.

    The form of FuxiCTR: a bias in each map, no activation, every map feeds both the pool and the next layer.
    """

    def __init__(self, count: int, maps: Sequence[int]) -> None:
        super().__init__()
        heights = [count, *maps]
        self.layers = nn.ModuleList(linear(count * below, above) for below, above in zip(heights, maps, strict=False))
        self.outputs = sum(maps)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return [B, sum of maps] for `vectors` [B, fields, d]."""
        x, pooled = vectors, []
        for layer in self.layers:
            outer = x.unsqueeze(2) * vectors.unsqueeze(1)  # [B, maps below, fields, d]
            x = layer(outer.flatten(1, 2).transpose(1, 2)).transpose(1, 2)
            pooled.append(x.sum(dim=2))
        return torch.cat(pooled, dim=1)


class XDeepFM(nn.Module):
    """logit = sum_i w_i + w^T CIN(e) + MLP(e), first-order weights in the last column of the table."""

    def __init__(
        self,
        layout: Layout,
        dim: int = 10,
        maps: Sequence[int] = (16, 16),
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        batch_norm: bool = True,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        self.vectors = FieldVectors(layout, dim + 1, std)
        self.interactions = CompressedInteractions(self.vectors.count, maps)
        self.interaction_output = linear(self.interactions.outputs, 1)
        self.deep = mlp(self.vectors.count * dim, hidden, dropout=dropout, batch_norm=batch_norm)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        vectors, first = split_first_order(self.vectors(ids, numeric))
        crossed = self.interaction_output(self.interactions(vectors))
        return first + (crossed + self.deep(vectors.flatten(1))).squeeze(1)  # type: ignore[no-any-return]
