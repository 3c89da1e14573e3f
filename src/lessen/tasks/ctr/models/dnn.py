"""A plain MLP on the flattened vectors, `YoutubeDNN` in BARS."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.tasks.ctr.layers import FieldVectors, mlp


class DNN(nn.Module):
    """logit = MLP(e_1 .. e_f)."""

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
        self.deep = mlp(self.vectors.count * dim, hidden, dropout=dropout, batch_norm=batch_norm)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        return self.deep(self.vectors(ids, numeric).flatten(1)).squeeze(1)  # type: ignore[no-any-return]
