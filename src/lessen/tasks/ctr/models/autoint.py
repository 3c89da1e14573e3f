"""AutoInt and AutoInt+: self-attention over the fields of a row (CIKM 2019, arXiv 1810.11921)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.tasks.ctr.layers import FieldVectors, linear, mlp, split_first_order


class FieldAttention(nn.Module):
    """relu(norm(softmax(Q K^T s) V + residual)) over the fields, the variant that BARS ran.

    Projections have no bias and no activation (the official code applies relu to them); s = 1/sqrt(head width) or 1;
    the residual is projected where the width changes; LayerNorm, if any, comes before the relu. Dropout, if any, falls
    on the attention weights and on the mixed values.
    """

    def __init__(
        self, inputs: int, width: int, heads: int, scale: bool, layer_norm: bool, residual: bool, dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.scale = (width // heads) ** -0.5 if scale else 1.0
        self.queries, self.keys, self.values = (linear(inputs, width, bias=False) for _ in range(3))
        self.residual: nn.Module | None = None
        if residual:
            self.residual = linear(inputs, width, bias=False) if inputs != width else nn.Identity()
        self.norm = nn.LayerNorm(width) if layer_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, fields, width] for `x` [B, fields, inputs]."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.queries(x), self.keys(x), self.values(x))
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)
        mixed = F.dropout(mixed.transpose(1, 2).flatten(2), dropout, self.training)
        return F.relu(self.norm(mixed if self.residual is None else mixed + self.residual(x)))


class AutoInt(nn.Module):
    """logit = w^T flatten(attention layers of e) + b, plus first-order weights where `wide` is set.

    The first-order weight of an id is then the last column of its table row.
    """

    def __init__(
        self,
        layout: Layout,
        dim: int = 10,
        layers: int = 2,
        heads: int = 2,
        width: int = 32,
        scale: bool = True,
        layer_norm: bool = True,
        residual: bool = True,
        wide: bool = False,
        attention_dropout: float = 0.0,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        self.wide = wide
        self.vectors = FieldVectors(layout, dim + wide, std)
        widths = [dim] + [width] * layers
        self.attention = nn.Sequential(
            *(
                FieldAttention(below, width, heads, scale, layer_norm, residual, attention_dropout)
                for below in widths[:-1]
            )
        )
        self.output = linear(self.vectors.count * widths[-1], 1)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        vectors, first = self.split(self.vectors(ids, numeric))
        return self.score(vectors) + first

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return vectors [B, fields, d] and the first-order term [B], 0 without one."""
        return split_first_order(rows) if self.wide else (rows, 0.0)

    def score(self, vectors: Tensor) -> Tensor:
        """Return the attention's logit [B] of `vectors` [B, fields, d]."""
        return self.output(self.attention(vectors).flatten(1)).squeeze(1)  # type: ignore[no-any-return]


class AutoIntPlus(AutoInt):
    """AutoInt with an MLP on the flattened vectors beside it."""

    def __init__(
        self,
        layout: Layout,
        dim: int = 10,
        layers: int = 2,
        heads: int = 2,
        width: int = 32,
        scale: bool = True,
        layer_norm: bool = True,
        residual: bool = True,
        wide: bool = False,
        attention_dropout: float = 0.0,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        batch_norm: bool = True,
        std: float = 0.01,
    ) -> None:
        super().__init__(layout, dim, layers, heads, width, scale, layer_norm, residual, wide, attention_dropout, std)
        self.deep = mlp(self.vectors.count * dim, hidden, dropout=dropout, batch_norm=batch_norm)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        vectors, first = self.split(self.vectors(ids, numeric))
        return self.score(vectors) + first + self.deep(vectors.flatten(1)).squeeze(1)  # type: ignore[no-any-return]
