"""What is timed to know a machine: layers of each form with a kernel, and torch's operations at some sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lessen.measure import work
from lessen.measure.work import kernel_name, linear_name
from lessen.stored.base import StoredModule
from lessen.stored.kernels import machine as kernel_machine
from lessen.stored.linears.clustered import ClusteredLinear, ClusteredMatrix
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.stored.linears.int8_linear import Int8Linear
from lessen.stored.linears.static_int8 import StaticInt8Linear
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.group_quantized import GroupQuantizedEmbedding
from lessen.stored.tables.half_embedding import HalfEmbedding
from lessen.stored.tables.hashed_embedding import HashedEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding

Call = Callable[[], Any]
Make = Callable[..., Callable[[int], Call]]
"""From the sizes of a layer to calls of it on a number of rows."""
ROWS = (1, 8, 64, 512)
SIDES = (32, 128, 512, 2048)
IDS, WIDTHS = (64, 1000, 1024, 16384), (4, 16, 64, 256)
TABLE_ROWS = 20_000
BITS = (8, 4, 3, 2)
Samples = list[tuple[int, int, Call]]
"""Multiply-adds, bytes in and out, and the call."""


def kernels() -> bool:
    """Tell whether forms have compiled kernels here: without them they are decoded, and other figures hold."""
    return kernel_machine.available()


def grids() -> list[tuple[str, tuple[tuple[int, ...], ...], Make]]:
    """Return, for each form, its name in `measure.work`, the sizes that are timed, and what makes the calls."""
    found: list[tuple[str, tuple[tuple[int, ...], ...], Make]] = []
    sides = (ROWS, SIDES, SIDES)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found.append((linear_name(dtype), sides, _dense(dtype)))
    for name, make in _compact_linears():
        found.append((name, sides, make))
    for name, table in _tables():
        found.append((name, (IDS, WIDTHS), table))
    return found


def _dense(dtype: torch.dtype) -> Make:
    def make(inputs: int, outputs: int) -> Callable[[int], Call]:
        layer = nn.Linear(inputs, outputs).to(dtype)
        return lambda rows: _on(layer, torch.randn(rows, inputs).to(dtype))

    return make


def _compact_linears() -> list[tuple[str, Make]]:
    made: list[Callable[[int, int], StoredModule]] = [
        lambda inputs, outputs: Int8Linear(inputs, outputs, "row"),
        lambda inputs, outputs: Int8Linear(inputs, outputs, "tensor"),
        StaticInt8Linear,
    ]
    if kernels():
        for bits in BITS:
            made += [_coded(bits, "float"), _coded(bits, "int8")]
    return [(kernel_name(one(32, 32)), _compact(one)) for one in made]


def _coded(bits: int, activations: str) -> Callable[[int, int], StoredModule]:
    def build(inputs: int, outputs: int) -> StoredModule:
        layer = GroupQuantizedLinear(inputs, outputs, bits, min(64, inputs), activations=activations)
        layer.scales.fill_(0.01)
        return layer

    return build


def _compact(build: Callable[[int, int], StoredModule]) -> Make:
    def make(inputs: int, outputs: int) -> Callable[[int], Call]:
        layer = build(inputs, outputs)
        return lambda rows: _on(layer, torch.randn(rows, inputs))

    return make


def _tables() -> list[tuple[str, Make]]:
    generator = torch.Generator().manual_seed(0)

    def hashed(shape: TableShape) -> StoredModule:
        table = HashedEmbedding(shape, [shape.rows // 2], 2, False)
        table.reset(0.1, generator)
        return table

    def rounded(bits: int) -> Callable[[TableShape], StoredModule]:
        return lambda shape: QuantizedEmbedding(shape, bits)

    def grouped(bits: int) -> Callable[[TableShape], StoredModule]:
        return lambda shape: GroupQuantizedEmbedding(shape, bits, min(64, shape.dim))

    made = [*map(rounded, (8, 4, 2)), *map(grouped, (8, 4)), lambda shape: HalfEmbedding(shape, "fp16"), hashed]

    def of(build: Callable[[TableShape], StoredModule]) -> Make:
        def make(width: int) -> Callable[[int], Call]:
            table = build(TableShape(TABLE_ROWS, width))
            return lambda ids: _on(table, torch.randint(0, TABLE_ROWS, (ids, 1), generator=generator))

        return make

    return [(kernel_name(build(TableShape(64, 4))), of(build)) for build in made]


def _on(layer: nn.Module, inputs: torch.Tensor) -> Call:
    layer.eval()
    return lambda: layer(inputs)


def lines() -> dict[str, Samples]:
    """Return samples of torch's own operations by the kind that `measure.work` gives them."""
    sizes = (2**6, 2**10, 2**14, 2**18, 2**21)
    flat = {size: torch.randn(size // 64 + 1, 64) for size in sizes}
    table, small = torch.randn(TABLE_ROWS, 32), torch.randn(8, 8)
    ids = {count: torch.randint(0, TABLE_ROWS, (count,)) for count in (16, 256, 4096, 65536)}
    return {
        work.PLAIN: [(0, 3 * x.nbytes, _call(torch.add, x, x)) for x in flat.values()]
        + [(0, 2 * x.nbytes, _call(torch.clone, x.t(), memory_format=torch.contiguous_format)) for x in flat.values()],
        work.FUNCTION: [(0, 2 * x.nbytes, _call(functional.gelu, x)) for x in flat.values()]
        + [(0, 2 * x.nbytes, _call(torch.softmax, x, -1)) for x in flat.values()],
        work.NORM: [(0, 2 * x.nbytes, _call(functional.layer_norm, x, (64,))) for x in flat.values()],
        work.DECODED: [(0, 0, _decoded(8))],
        work.VIEW: [(0, 0, _call(small.view, 64)), (0, 0, _call(small.transpose, 0, 1))],
        work.LOOKUP: [(0, 128 * len(one), _call(functional.embedding, one, table)) for one in ids.values()],
        work.BATCHED: [_batched(*size) for size in ((4, 8, 16), (16, 32, 32), (32, 64, 64), (8, 256, 256))],
        work.ATTENTION: [
            _attention(*size) for size in ((1, 4, 16, 32), (4, 4, 64, 32), (8, 8, 128, 64), (1, 8, 512, 64))
        ],
        work.CONVOLUTION: [
            _convolution(*size, 1)
            for size in ((1, 3, 16, 32), (8, 16, 32, 16), (8, 32, 64, 16), (16, 64, 64, 32), (4, 128, 256, 8))
        ],
        work.GROUPED: [_convolution(b, c, c, s, c) for b, c, s in ((1, 16, 16), (8, 32, 16), (8, 64, 32), (4, 128, 8))],
    }  # fmt: skip


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call:
    return lambda: function(*args, **kwargs)


def _decoded(side: int) -> Call:
    """Return a call of a layer that holds its weight decoded; its product is too small to count."""
    layer = ClusteredLinear(ClusteredMatrix(side, side, 4))
    layer.hold(torch.float32)
    return _on(layer, torch.ones(1, side))


def _batched(batch: int, rows: int, width: int) -> tuple[int, int, Call]:
    left, right = torch.randn(batch, rows, width), torch.randn(batch, width, rows)
    moved = left.nbytes + right.nbytes + 4 * batch * rows * rows
    return batch * rows * rows * width, moved, _call(torch.bmm, left, right)


def _attention(batch: int, heads: int, length: int, width: int) -> tuple[int, int, Call]:
    query = torch.randn(batch, heads, length, width)
    macs = 2 * batch * heads * length * length * width
    return macs, 4 * query.nbytes, _call(functional.scaled_dot_product_attention, query, query, query)


def _convolution(batch: int, inputs: int, outputs: int, side: int, groups: int) -> tuple[int, int, Call]:
    layer, given = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups), torch.randn(batch, inputs, side, side)
    answer = batch * outputs * side * side
    return answer * inputs // groups * 9, given.nbytes + 4 * answer, _call(layer, given)
