"""IPNN: inner products of all pairs of fields beside the vectors, into an MLP (ICDM 2016, arXiv 1611.00144)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.tasks.ctr.layers import FieldVectors, InnerProducts, mlp


class IPNN(nn.Module):
    """logit = MLP([e_1 .. e_f ; <e_i, e_j> for all i < j])."""

    def __init__(
        self,
        layout: Layout,
        dim: int = 10,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        batch_norm: bool = True,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        self.vectors = FieldVectors(layout, dim, std)
        self.products = InnerProducts(self.vectors.count)
        width = self.vectors.count * dim + self.products.outputs
        self.deep = mlp(width, hidden, dropout=dropout, batch_norm=batch_norm)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        vectors = self.vectors(ids, numeric)
        joined = torch.cat([vectors.flatten(1), self.products(vectors)], dim=1)
        return self.deep(joined).squeeze(1)  # type: ignore[no-any-return]
