"""DeepFM: first order, factorisation machine and MLP over one shared table (IJCAI 2017, arXiv 1703.04247)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.tasks.ctr.layers import FieldVectors, mlp, pairwise_sum, split_first_order


class DeepFM(nn.Module):
    """logit = sum_i w_i + sum_{i<j} <e_i, e_j> + MLP(e_1 .. e_f), whose output layer holds the bias.

    The first-order weight of an id is the last column of its table row, so one gather of width d+1 serves both.
    """

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
        self.vectors = FieldVectors(layout, dim + 1, std)
        self.deep = mlp(self.vectors.count * dim, hidden, dropout=dropout, batch_norm=batch_norm)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        vectors, first = split_first_order(self.vectors(ids, numeric))
        deep = self.deep(vectors.flatten(1)).squeeze(1)
        return first + pairwise_sum(vectors) + deep  # type: ignore[no-any-return]
