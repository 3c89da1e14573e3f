"""Layers that click models share: the flat table that turns ids into field vectors, the MLP, the crosses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.errors import DataError
from lessen.stored.fields import FieldEmbedding, masked_mean


class FieldVectors(nn.Module):
    """All fields of a row as vectors of one width, by a single gather from one flat table.

        ids [B, columns] -> table -> [B, columns, d] -> categorical: the row; multi, sequence: mean over ids > 0
        numeric [B, n]   -> value * vector of that field                                   -> [B, fields, d]

    Order of the fields: categorical, pooled (multi-valued and sequence), numeric, each in the layout's order.

    Args:
        layout: fields and vocabularies.
        dim: width of the vectors.
        std: standard deviation of the normal initialisation; padding starts at zero and stays there.
    """

    def __init__(self, layout: Layout, dim: int, std: float = 0.01) -> None:
        super().__init__()
        self.layout = layout
        self.table = FieldEmbedding(layout.segments, dim)
        nn.init.normal_(self.table.weight, std=std)
        with torch.no_grad():
            self.table.weight[0] = 0.0
        self.values = nn.Parameter(torch.randn(len(layout.numeric), dim) * std) if layout.numeric else None
        self.count = len(layout.fields) + len(layout.numeric)
        self.widths, self.pooled = _sections(layout)
        self.plain = self.values is None and not any(self.pooled)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return [B, fields, d] float32 for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        return self.combine(self.table(ids), ids, numeric)

    def combine(self, gathered: Tensor, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return [B, fields, d] for table rows that are already gathered, [B, columns, d]."""
        if self.plain:
            return gathered
        # split, not index: its backward is one concatenation
        rows = torch.split(gathered, self.widths, dim=1)
        masks = torch.split(ids > 0, self.widths, dim=1)
        single = [part for part, pooled in zip(rows, self.pooled, strict=True) if not pooled]
        means = [masked_mean(part, mask) for part, mask, pooled in zip(rows, masks, self.pooled, strict=True) if pooled]
        parts = [*single, *(mean.unsqueeze(1) for mean in means)]
        if self.values is not None:
            if numeric is None:
                raise DataError(f"the model needs numeric inputs: {', '.join(self.layout.numeric)}")
            parts.append(numeric.unsqueeze(2) * self.values)
        return torch.cat(parts, dim=1)


def _sections(layout: Layout) -> tuple[list[int], list[bool]]:
    """Return widths of the column sections, neighbouring categorical fields as one, and which are to be pooled."""
    widths: list[int] = []
    pooled: list[bool] = []
    for field in layout.fields:
        single = field.kind == "categorical"
        if single and pooled and not pooled[-1]:
            widths[-1] += 1
        else:
            widths.append(field.width)
            pooled.append(not single)
    return widths, pooled


def split_first_order(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Split [B, fields, d+1] into vectors [B, fields, d] and the sum of the first-order weights [B].

    The first-order weight of an id is the last column of its table row: one gather serves both.
    """
    # split, not index: its backward is one concatenation
    vectors, first = torch.split(rows, [rows.shape[-1] - 1, 1], dim=-1)
    return vectors, first.sum(dim=(1, 2))


def mlp(
    inputs: int,
    hidden: Sequence[int],
    *,
    dropout: float = 0.0,
    batch_norm: bool = False,
    outputs: int | None = 1,
    activation: Callable[[int], nn.Module] | None = None,
) -> nn.Sequential:
    """Return Linear -> BatchNorm (if asked) -> activation (ReLU) -> Dropout for each width, then a Linear."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(linear(inputs, width))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(activation(width) if activation is not None else nn.ReLU())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        inputs = width
    if outputs is not None:
        layers.append(linear(inputs, outputs))
    return nn.Sequential(*layers)


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """Return a Linear with Xavier normal weight and zero bias, the initialisation BARS ran with."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Dice(nn.Module):
    """DIN's activation (arXiv 1706.06978, Eq. 9): p x + (1 - p) alpha x, p = sigmoid of x normalised over the batch.

    Evaluation uses moving averages. Padding enters no statistic where a mask is given.
    """

    def __init__(self, width: int, eps: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.alpha = nn.Parameter(torch.zeros(width))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the same shape as `x` [..., width]; `mask` [...] says which positions are real."""
        mean, variance = self._moments(x, mask) if self.training else (self.mean, self.variance)
        gate = torch.sigmoid((x - mean) * torch.rsqrt(variance + self.eps))
        return x * (gate + (1.0 - gate) * self.alpha)

    def _moments(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        weight = torch.ones_like(x[..., :1]) if mask is None else mask.to(x.dtype).unsqueeze(-1)
        total = weight.sum().clamp(min=1.0)
        axes = tuple(range(x.ndim - 1))
        mean = (x * weight).sum(dim=axes) / total
        variance = ((x - mean).square() * weight).sum(dim=axes) / total
        with torch.no_grad():
            self.mean.lerp_(mean, self.momentum)
            self.variance.lerp_(variance, self.momentum)
        return mean, variance


class CrossNetwork(nn.Module):
    """The full-rank crosses of DCNv2: x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, elementwise product."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(width, width) for _ in range(layers))

    def forward(self, x0: Tensor) -> Tensor:
        """Return x_L [B, width] for `x0` [B, width]."""
        x = x0
        for layer in self.layers:
            x = torch.addcmul(x, x0, layer(x))
        return x


def pairwise_sum(vectors: Tensor) -> Tensor:
    """Return sum_{i<j} <e_i, e_j> [B] of `vectors` [B, fields, d], by (square of sum - sum of squares) / 2."""
    return 0.5 * (vectors.sum(dim=1).square() - vectors.square().sum(dim=1)).sum(dim=1)


class InnerProducts(nn.Module):
    """<e_i, e_j> of all pairs i < j, row by row: [B, fields, d] -> [B, fields (fields - 1) / 2]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        left, right = torch.triu_indices(count, count, 1)
        # position in the flattened Gram matrix: one gather instead of two index tensors
        self.picks: Tensor
        self.register_buffer("picks", left * count + right, persistent=False)
        self.outputs = len(left)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the products."""
        gram = torch.bmm(vectors, vectors.transpose(1, 2))
        return gram.flatten(1).index_select(1, self.picks)
