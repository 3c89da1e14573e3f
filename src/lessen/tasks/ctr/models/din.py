"""DIN: the history weighted by what each past item has to do with the candidate (KDD 2018, arXiv 1706.06978)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.errors import TaskError
from lessen.tasks.ctr.layers import Dice, FieldVectors, linear, mlp


class ActivationUnit(nn.Module):
    """Weight of each past behaviour: MLP([q ; k ; q - k ; q * k]), and the weighted sum of the behaviours.

    There is no softmax: the sum of the weights carries how strong the interest is. Padding weighs exactly 0 and
    enters no statistic of Dice.
    """

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [4 * width, *hidden]
        self.linears = nn.ModuleList(linear(below, above) for below, above in zip(widths, hidden, strict=False))
        self.activations = nn.ModuleList(Dice(above) for above in hidden)
        self.output = linear(widths[-1], 1)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Return [B, D] for a candidate `query` [B, D], behaviours `keys` [B, L, D] and `mask` [B, L]."""
        wide = query.unsqueeze(1).expand_as(keys)
        x = torch.cat([wide, keys, wide - keys, wide * keys], dim=2)
        for layer, activation in zip(self.linears, self.activations, strict=True):
            x = activation(layer(x), mask)
        weight = self.output(x).squeeze(2) * mask.to(keys.dtype)
        return torch.bmm(weight.unsqueeze(1), keys).squeeze(1)


class DIN(nn.Module):
    """logit = MLP of all fields, where each sequence is pooled by its own candidate: the field it shares rows with.

    Raises:
        TaskError: no sequence field shares its rows with a categorical field.
    """

    def __init__(
        self,
        layout: Layout,
        dim: int = 10,
        attention: Sequence[int] = (32,),
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        candidate = {field.segment: field for field in layout.single}
        pairs = [(f, candidate[f.segment]) for f in layout.pooled if f.kind == "sequence" and f.segment in candidate]
        if not pairs:
            raise TaskError("DIN needs a sequence field that shares its vocabulary with a categorical field")
        self.vectors = FieldVectors(layout, dim, std)
        order = [*layout.single, *layout.pooled]
        self.spans = [(sequence.start, sequence.start + sequence.width) for sequence, _ in pairs]
        self.candidates = [target.start for _, target in pairs]
        self.places = [order.index(sequence) for sequence, _ in pairs]
        self.units = nn.ModuleList(ActivationUnit(dim, attention) for _ in pairs)
        self.deep = mlp(self.vectors.count * dim, hidden, dropout=dropout, activation=Dice)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        rows = self.vectors.table(ids)
        fields = list(self.vectors.combine(rows, ids, numeric).unbind(dim=1))
        for unit, (start, stop), target, place in zip(
            self.units, self.spans, self.candidates, self.places, strict=True
        ):
            fields[place] = unit(rows[:, target], rows[:, start:stop], ids[:, start:stop] > 0)
        return self.deep(torch.cat(fields, dim=1)).squeeze(1)  # type: ignore[no-any-return]
