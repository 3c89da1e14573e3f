"""FGCNN: a small convolution over the fields makes new fields for IPNN (WWW 2019, arXiv 1904.04447)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.errors import ConfigError
from lessen.tasks.ctr.layers import FieldVectors, InnerProducts, linear, mlp


class FGCNN(nn.Module):
    """e' -> [conv k x 1 -> BatchNorm -> tanh -> max pool] per layer -> recombined fields, beside e into IPNN.

        e' [B, 1, f, d] -> [B, c, ceil(f/p), d] -> Linear, tanh -> [B, r ceil(f/p), d] new fields

    Pooling pads at the end (ceil); FuxiCTR pads at both, so windows are shifted by one. Order of fields matters.

    Raises:
        ConfigError: an even kernel, for which "same" padding does not exist.
    """

    def __init__(
        self,
        layout: Layout,
        dim: int = 10,
        channels: Sequence[int] = (6, 8),
        kernel: int = 3,
        pool: int = 2,
        maps: int = 2,
        share_tables: bool = False,
        convolution_batch_norm: bool = True,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        batch_norm: bool = True,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ConfigError(f"FGCNN.kernel = {kernel} must be odd, so that padding keeps the number of fields")
        self.vectors = FieldVectors(layout, dim, std)
        self.generation = None if share_tables else FieldVectors(layout, dim, std)
        self.dim = dim
        self.convolutions, self.recombinations = nn.ModuleList(), nn.ModuleList()
        total = height = self.vectors.count
        for below, above in zip((1, *channels), channels, strict=False):
            height = -(-height // pool)
            convolution = nn.Conv2d(below, above, (kernel, 1), padding=(kernel // 2, 0))
            pooling = nn.MaxPool2d((pool, 1), ceil_mode=True)
            norm = [nn.BatchNorm2d(above)] if convolution_batch_norm else []
            self.convolutions.append(nn.Sequential(convolution, *norm, nn.Tanh(), pooling))
            self.recombinations.append(linear(above * height * dim, maps * height * dim))
            total += maps * height
        self.products = InnerProducts(total)
        width = total * dim + self.products.outputs
        self.deep = mlp(width, hidden, dropout=dropout, batch_norm=batch_norm)

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits [B] for `ids` [B, columns] int32 and `numeric` [B, n] float32."""
        vectors = self.vectors(ids, numeric)
        x = (vectors if self.generation is None else self.generation(ids, numeric)).unsqueeze(1)
        fields = [vectors]
        for convolution, recombination in zip(self.convolutions, self.recombinations, strict=True):
            x = convolution(x)
            fields.append(torch.tanh(recombination(x.flatten(1))).view(len(x), -1, self.dim))
        everything = torch.cat(fields, dim=1)
        joined = torch.cat([everything.flatten(1), self.products(everything)], dim=1)
        return self.deep(joined).squeeze(1)  # type: ignore[no-any-return]
