"""FinalMLP: two MLPs over gated copies of the vectors, fused by a bilinear form (AAAI 2023, arXiv 2304.00902)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.errors import ConfigError
from lessen.stored.fields import FieldEmbedding, Segment
from lessen.tasks.ctr.layers import FieldVectors, linear, mlp


class ContextGate(nn.Module):
    """2 sigmoid(MLP(context)) for each component of the flattened vectors; contexts have a table of their own.

    Numeric contexts enter as value * vector, after the categorical ones.
    The gate is a learnt vector without context fields: the published code feeds zeros through a ReLU there, so that its
    gate never trains.
    """

    def __init__(self, layout: Layout, contexts: Sequence[str], dim: int, hidden: int, width: int, std: float) -> None:
        super().__init__()
        if not contexts:
            self.constant = nn.Parameter(torch.zeros(width))
            return
        numbers = [name for name in contexts if name in layout.numeric]
        fields = [layout.field(name) for name in contexts if name not in numbers]
        if any(field.kind != "categorical" for field in fields):
            raise ConfigError(f"FinalMLP gates need categorical or numeric context fields, not {', '.join(contexts)}")
        known = [layout.segment(field.name) for field in fields]
        own = _own_rows(known)
        self.columns = [field.start for field in fields]
        self.places = [layout.numeric.index(name) for name in numbers]
        if fields:
            self.shift: Tensor
            shift = [o.start - s.start for o, s in zip(own, known, strict=True)]
            self.register_buffer("shift", torch.tensor(shift, dtype=torch.int32), persistent=False)
            self.table = FieldEmbedding(own, dim)
            nn.init.normal_(self.table.weight, std=std)
        if numbers:
            self.values = nn.Parameter(torch.randn(len(numbers), dim) * std)
        self.layers = mlp(dim * len(contexts), (hidden,), outputs=width)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return gates [B, width], or [width] without context."""
        if not hasattr(self, "columns"):
            return 2.0 * torch.sigmoid(self.constant)
        parts = [self.table(ids[:, self.columns] + self.shift).flatten(1)] if self.columns else []
        if self.places and numeric is not None:
            parts.append((numeric[:, self.places].unsqueeze(2) * self.values).flatten(1))
        return 2.0 * torch.sigmoid(self.layers(torch.cat(parts, dim=1)))


def _own_rows(known: list[Segment]) -> tuple[Segment, ...]:
    """Return the segments one after the other from row 1 on."""
    starts = [1]
    for segment in known:
        starts.append(starts[-1] + segment.rows)
    return tuple(Segment(s.name, start, s.rows) for s, start in zip(known, starts, strict=False))


class FinalMLP(nn.Module):
    """logit = w1^T o1 + w2^T o2 + sum over heads of o1_h^T W_h o2_h, o_s = MLP_s(x * gate_s).

    The second stream has the dropout and BatchNorm of the first unless it is given its own. Both streams see x
    itself without `gates`.

    Raises:
        ConfigError: the heads do not divide the last widths, or a context field is not categorical.
    """

    def __init__(
        self,
        layout: Layout,
        dim: int = 10,
        hidden1: Sequence[int] = (128,),
        hidden2: Sequence[int] = (64,),
        heads: int = 4,
        context1: Sequence[str] = (),
        context2: Sequence[str] = (),
        gates: bool = True,
        gate_hidden: int = 32,
        dropout: float = 0.4,
        batch_norm: bool = True,
        dropout2: float | None = None,
        batch_norm2: bool | None = None,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        if hidden1[-1] % heads or hidden2[-1] % heads:
            raise ConfigError(f"FinalMLP.heads = {heads} must divide the last widths {hidden1[-1]} and {hidden2[-1]}")
        self.heads = heads
        self.vectors = FieldVectors(layout, dim, std)
        width = self.vectors.count * dim
        self.gate1, self.gate2 = (
            ContextGate(layout, contexts, dim, gate_hidden, width, std) if gates else None
            for contexts in (context1, context2)
        )
        drops = dropout, dropout if dropout2 is None else dropout2
        norms = batch_norm, batch_norm if batch_norm2 is None else batch_norm2
        self.stream1, self.stream2 = (
            mlp(width, hidden, dropout=drop, batch_norm=norm, outputs=None)
            for hidden, drop, norm in zip((hidden1, hidden2), drops, norms, strict=True)
        )
        self.output1, self.output2 = linear(hidden1[-1], 1), linear(hidden2[-1], 1)
        self.bilinear = nn.Parameter(torch.empty(heads, hidden1[-1] // heads, hidden2[-1] // heads))
        nn.init.xavier_normal_(self.bilinear)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        x = self.vectors(ids, numeric).flatten(1)
        first, second = (
            stream(x if gate is None else x * gate(ids, numeric))
            for stream, gate in ((self.stream1, self.gate1), (self.stream2, self.gate2))
        )
        heads = first.unflatten(1, (self.heads, -1)), second.unflatten(1, (self.heads, -1))
        fused = torch.einsum("bki,kij,bkj->b", heads[0], self.bilinear, heads[1])
        return fused + (self.output1(first) + self.output2(second)).squeeze(1)  # type: ignore[no-any-return]
