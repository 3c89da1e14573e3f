"""A linear layer of few-bit codes whose scales and zeros are codes too, with single weights kept in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import bits as packing
from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.linears.decoded import DecodedLinear
from lessen.stored.linears.group_grid import WIDTHS, GroupGrid, group_count

NARROW = 2**15
"""Inputs up to which columns are int16; int32 beyond."""


@dataclass(frozen=True)
class Statistics:
    """One number for each group of inputs and each output, as codes on grids of their own.

    `codes` uint8 [groups, out]; `grid` holds a scale and a minimum, fp16 [groups, runs], for each run of outputs.
    """

    codes: Tensor
    grid: GroupGrid

    def values(self) -> Tensor:
        """Return the numbers, float32 [groups, out]."""
        return self.grid.values(self.codes)


@dataclass(frozen=True)
class Outliers:
    """Weights that are kept in fp16: the place of each, int64 [count], ordered by row and column, and its value."""

    rows: Tensor
    columns: Tensor
    values: Tensor


@stored
class SpQRLinear(DecodedLinear):
    """SpQR's form (arXiv 2306.03078). Storage only: bytes are saved on disk; a served model holds it decoded.

    value[o, order[i]] = scale[i // group, o] * (code[o, i] - zero[i // group, o]), unless it is an outlier.

    State: `codes` uint8 [out, packed bytes of a row]; `scale_codes` and `zero_codes` uint8 [groups, packed bytes of
    `out` codes of `stats_bits`], `scale_grids` and `zero_grids` fp16 [2, groups, runs of `stats_group` outputs] (scale,
    minimum); `order` int16 (beyond 32768 inputs int32) [in] where inputs were done out of order; outliers by row:
    `starts` int32 [out + 1], `columns` of the type of `order`, `values` fp16; `bias` float32 [out] or none.
    Bits of a weight: bits + 2 stats_bits / group + 64 / (group stats_group) + 32 for each outlier, and for each row 32,
    for each input 16.
    """

    kind = "spqr-linear"
    codes: Tensor
    scale_codes: Tensor
    scale_grids: Tensor
    zero_codes: Tensor
    zero_grids: Tensor
    order: Tensor | None
    starts: Tensor
    columns: Tensor
    values: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        group: int,
        stats_bits: int,
        stats_group: int,
        outliers: int,
        ordered: bool,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**24)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        size = checks.elements("a weight", self.in_features, self.out_features)
        self.bits: int = checks.one_of("bits", bits, WIDTHS)
        self.group = checks.whole("group", group, 1, self.in_features)
        self.stats_bits: int = checks.one_of("stats_bits", stats_bits, WIDTHS)
        self.stats_group = checks.whole("stats_group", stats_group, 1, 2**24)
        count = checks.whole("outliers", outliers, 0, min(size, 2**31 - 1))
        out, groups = self.out_features, group_count(self.in_features, self.group)
        runs = group_count(out, self.stats_group)
        column = torch.int16 if self.in_features <= NARROW else torch.int32
        self.register_buffer("codes", _bytes(out, packing.row_bytes(self.in_features, self.bits)))
        for name in ("scale", "zero"):
            self.register_buffer(f"{name}_codes", _bytes(groups, packing.row_bytes(out, self.stats_bits)))
            self.register_buffer(f"{name}_grids", torch.zeros(2, groups, runs, dtype=torch.float16))
        has_order = checks.one_of("ordered", ordered, (True, False))
        self.register_buffer("order", torch.arange(self.in_features, dtype=column) if has_order else None)
        self.register_buffer("starts", torch.zeros(out + 1, dtype=torch.int32))
        self.register_buffer("columns", torch.zeros(count, dtype=column))
        self.register_buffer("values", torch.zeros(count, dtype=torch.float16))
        has_bias = checks.one_of("bias", bias, (True, False))
        self.register_buffer("bias", torch.zeros(out) if has_bias else None)

    def config(self) -> dict[str, Any]:
        """Return the sizes, the bits and runs of both levels, how many outliers there are, and what is optional."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bits": self.bits,
            "group": self.group,
            "stats_bits": self.stats_bits,
            "stats_group": self.stats_group,
            "outliers": len(self.values),
            "ordered": self.order is not None,
            "bias": self.bias is not None,
        }

    @classmethod
    def from_codes(
        cls,
        layer: nn.Linear,
        codes: Tensor,
        bits: int,
        group: int,
        scales: Statistics,
        zeros: Statistics,
        outliers: Outliers,
        order: Tensor | None,
    ) -> SpQRLinear:
        """Pack codes uint8 [out, in], columns in `order`, with their statistics and outliers; the bias is the layer's.

        Args:
            order: int64 [in], the input of each column of `codes`; None: their own.
        """
        inputs, out = layer.in_features, layer.out_features
        level = scales.grid
        made = cls(
            inputs,
            out,
            bits,
            group,
            level.bits,
            level.group,
            len(outliers.values),
            order is not None,
            layer.bias is not None,
        ).to(layer.weight.device)
        made.codes.copy_(packing.pack(codes, bits))
        for into, grids, one in (
            (made.scale_codes, made.scale_grids, scales),
            (made.zero_codes, made.zero_grids, zeros),
        ):
            into.copy_(packing.pack(one.codes, level.bits))
            assert one.grid.minimums is not None
            grids.copy_(torch.stack([one.grid.scales, one.grid.minimums]))
        if made.order is not None and order is not None:
            made.order.copy_(order)
        made.starts[1:] = torch.bincount(outliers.rows, minlength=out).cumsum(0)
        made.columns.copy_(outliers.columns)
        made.values.copy_(outliers.values)
        if made.bias is not None:
            made.bias.copy_(layer.bias.detach())
        return made

    def decoded(self, part: slice) -> Tensor:
        """Return the weights of some outputs, float32 [part, in]."""
        codes = packing.unpack(self.codes[part], self.bits, self.in_features)
        groups = torch.arange(self.in_features, device=codes.device) // self.group
        scales, zeros = (
            self._statistics(codes_, grids)[:, part].t().index_select(1, groups)
            for codes_, grids in ((self.scale_codes, self.scale_grids), (self.zero_codes, self.zero_grids))
        )
        weights = decode(codes, scales, zeros)
        if self.order is not None:
            weights = torch.empty_like(weights).index_copy_(1, self.order.long(), weights)
        first, last = int(self.starts[part.start]), int(self.starts[part.stop])
        counts = self.starts[part.start : part.stop + 1].long().diff()
        rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        weights[rows, self.columns[first:last].long()] = self.values[first:last].float()
        return weights

    def check_values(self) -> None:
        """Refuse grids and outliers that are not finite, an order that repeats inputs, and rows out of place."""
        for name in ("scale_grids", "zero_grids", "values"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise ValueError(f"{name} hold NaN or infinity")
        if self.order is not None and not torch.equal(
            self.order.long().sort().values, torch.arange(self.in_features, device=self.order.device)
        ):
            raise ValueError("order does not hold every input once")
        checks.within("columns", self.columns, 0, self.in_features - 1)
        if int(self.starts[0]) != 0 or int(self.starts[-1]) != len(self.values) or bool((self.starts.diff() < 0).any()):
            raise ValueError("starts does not say where the rows lie")

    def _statistics(self, codes: Tensor, grids: Tensor) -> Tensor:
        grid = GroupGrid(self.stats_bits, self.stats_group, grids[0], grids[1])
        return Statistics(packing.unpack(codes, self.stats_bits, self.out_features), grid).values()


def layer_bytes(layer: nn.Linear, bits: int, group: int, stats_bits: int, stats_group: int) -> int:
    """Return the bytes that a layer takes in this form without outliers, which add 4 each, and without an order."""
    sizes = (layer.in_features, layer.out_features, bits, group, stats_bits, stats_group)
    with torch.device("meta"):
        empty = SpQRLinear(*sizes, outliers=0, ordered=False, bias=layer.bias is not None)
    return sum(tensor.numel() * tensor.element_size() for tensor in empty.buffers())


def decode(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Return the float32 values of codes; a scale that fell below zero on its own grid counts as zero."""
    return (codes.float() - zeros) * scales.clamp_min(0)


def _bytes(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.uint8)
