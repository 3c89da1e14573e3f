"""Fixed dimensional encodings of documents in one pass: cells, means, the nearest point of an empty cell, projection.

products  float32 [T, R * bits + 16]   of each point with every hyperplane; the sign of `bits` of them is its cell
points    float32 [T, dim]
planes    float32 [R, dim, width]      projection of each repetition
out       float32 [n, R, 2^bits, width]

of each document and repetition:  sums of its points by cell, counts, first points --> keys of empty cells in `bits`
passes --> every cell's vector times the projection, a block of cells at a time
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from lessen.stored.kernels import machine
from lessen.stored.kernels.assembly import Assembly, floats, multiply_add, same, spread
from lessen.stored.kernels.functions import Function

NAMES = ("state", "products", "stride", "points", "planes", "starts", "first", "last", "repetitions", "out")
FAR = 1 << 24
"""More than the points of a document: a key is a distance times this, plus the number of a point."""
LANES = 16
CELLS = 8
"""Cells that are projected together."""


def available() -> bool:
    """Tell whether kernels can be made here."""
    return machine.available()


def takes(dim: int, width: int, bits: int) -> bool:
    """Tell whether a kernel can be made here for these sizes."""
    return machine.available() and dim % LANES == 0 and width % 8 == 0 and 0 <= bits <= 8


def encode(
    products: Tensor, points: Tensor, planes: Tensor, starts: Tensor, out: Tensor, *, bits: int, document: bool,
    fill: bool,
) -> None:  # fmt: skip
    """Write the blocks of documents to `out`, float32 [n, R * 2^bits * width], contiguous; see `muvera.Encoding`.

    Args:
        products: float32 [T, R * bits] and 16 columns more that hold anything.
        starts: int64 [n + 1], the first point of each document and the end.
        document: means of cells, else sums; fill: an empty cell takes the point whose bits differ least.
    """
    repetitions, dim, width = planes.shape
    state = (ctypes.c_int64 * 3)(1, 0, 0)
    values = [
        ctypes.addressof(state), products.data_ptr(), products.shape[1], points.data_ptr(), planes.data_ptr(),
        starts.data_ptr(), 0, len(starts) - 1, repetitions, out.data_ptr(),
    ]  # fmt: skip
    machine.run(_kernel(dim, width, bits, document, fill), (ctypes.c_int64 * len(values))(*values), 1)


def doubtful(products: Tensor, columns: int, limit: float) -> Tensor:
    """Return where products lie within `limit` of zero, int64 [k, 2] of rows and columns.

    Args:
        products: float32 [T, columns + 16]; the last 16 columns are not looked at.
    """
    found = torch.empty(len(products) * -(-columns // LANES), dtype=torch.int64)
    count = torch.zeros(1, dtype=torch.int64)
    state = (ctypes.c_int64 * 3)(1, 0, 0)
    given = torch.tensor([limit], dtype=torch.float32)
    tensors = (products, given, found, count)
    values = [ctypes.addressof(state), len(products), products.shape[1], *(one.data_ptr() for one in tensors)]
    machine.run(_looking(columns), (ctypes.c_int64 * len(values))(*values), 1)
    places = (found[: int(count)][:, None] + torch.arange(LANES)).flatten()
    rows, inside = places // products.shape[1], places % products.shape[1]
    near = (inside < columns) & (products.flatten()[places].abs() <= limit)
    return torch.stack([rows[near], inside[near]], dim=1)


@cache
def _looking(columns: int) -> int:
    function = Function(("state", "rows", "stride", "products", "limit", "found", "count"))
    code, kind = function.code, floats(LANES)
    limit = spread(code, code.get("float", "%limitptr"), LANES)
    with code.loop("0", "%rows") as row:
        start = code.multiply(row, "%stride")
        with code.loop("0", str(-(-columns // LANES))) as block:
            place = code.add(start, code.multiply(block, LANES))
            values = code.get(kind, code.place("%productsptr", place, "float"))
            size = code.call(kind, f"llvm.fabs.v{LANES}f32", [kind], [values])
            near = code.let(f"bitcast <{LANES} x i1> {code.let(f'fcmp ole {kind} {size}, {limit}')} to i{LANES}")
            with code.when(code.let(f"icmp ne i{LANES} {near}, 0")):
                number = code.get("i64", "%countptr")
                code.set("i64", place, code.place("%foundptr", number, "i64"))
                code.set("i64", code.add(number, 1), "%countptr")
    return machine.compiled(function.text())


@cache
def _kernel(dim: int, width: int, bits: int, document: bool, fill: bool) -> int:
    return machine.compiled(_text(dim, width, bits, document, fill))


def _text(dim: int, width: int, bits: int, document: bool, fill: bool) -> str:
    function = Function(NAMES)
    code, cells = function.code, 1 << bits
    sums = code.room("float", cells * dim)
    counts, keys, sources = code.room("i64", cells), code.room("i64", cells), code.room("i64", cells)
    scales = code.room("float", cells)
    zeros = code.room("float", dim)
    for column in range(0, dim, LANES):
        code.set(floats(LANES), same(LANES, "float", "0.0"), code.place(zeros, str(column), "float"))
    with code.loop("%first", "%last") as number, code.loop("0", "%repetitions") as repetition:
        start, end = code.number("%starts", number), code.number("%starts", code.add(number, 1))
        with code.loop("0", str(cells * dim // LANES)) as at:
            code.set(floats(LANES), same(LANES, "float", "0.0"),
                     code.place(sums, code.multiply(at, LANES), "float"))  # fmt: skip
        with code.loop("0", str(cells)) as cell:
            code.set("i64", "0", code.place(counts, cell, "i64"))
            code.set("i64", str(1 << 40), code.place(keys, cell, "i64"))
        with code.loop(start, end) as point:
            _gather(code, dim, bits, repetition, point, start, sums, counts, keys)
        if document and fill:
            for bit in range(bits):
                _pass(code, cells, bit, keys)
        with code.loop("0", str(cells)) as cell:
            _source(code, dim, cell, start, (sums, counts, keys, sources, scales, zeros), document, fill)
        place = code.add(code.multiply(code.let(f"sub i64 {number}, %first"), "%repetitions"), repetition)
        out = code.place("%outptr", code.multiply(place, cells * width), "float")
        planes = code.place("%planesptr", code.multiply(repetition, dim * width), "float")
        together = min(CELLS, cells)
        with code.loop("0", str(cells // together)) as block:
            _project(code, dim, width, together, code.multiply(block, together), sources, scales, planes, out)
    return function.text()


def _gather(
    code: Assembly, dim: int, bits: int, repetition: str, point: str, start: str, sums: str, counts: str, keys: str
) -> None:
    """Add a point to the sum of its cell, and note the cell's first point."""
    if bits:
        column = code.add(code.multiply(point, "%stride"), code.multiply(repetition, bits))
        products = code.get(floats(8), code.place("%productsptr", column, "float"))
        signs = code.let(f"fcmp ogt {floats(8)} {products}, zeroinitializer")
        spelled = code.wide(code.let(f"bitcast <8 x i1> {signs} to i8"), "i8")
        cell = code.let(f"and i64 {spelled}, {(1 << bits) - 1}")
    else:
        cell = "0"
    row = code.place(sums, code.multiply(cell, dim), "float")
    own = code.place("%pointsptr", code.multiply(point, dim), "float")
    for at in range(0, dim, LANES):
        place = code.place(row, str(at), "float")
        value = code.get(floats(LANES), code.place(own, str(at), "float"))
        code.set(floats(LANES), code.let(f"fadd {floats(LANES)} {code.get(floats(LANES), place)}, {value}"), place)
    count = code.place(counts, cell, "i64")
    code.set("i64", code.add(code.get("i64", count), 1), count)
    key, mine = code.place(keys, cell, "i64"), code.let(f"sub i64 {point}, {start}")
    before = code.get("i64", key)
    code.set("i64", code.choose(code.compare("slt", before, mine), before, mine), key)


def _pass(code: Assembly, cells: int, bit: int, keys: str) -> None:
    """Let the keys of cells that differ in one bit take each other's point, one step further away."""
    with code.loop("0", str(cells >> 1)) as pair:
        low = code.let(f"and i64 {pair}, {(1 << bit) - 1}")
        high = code.let(f"shl i64 {code.let(f'lshr i64 {pair}, {bit}')}, {bit + 1}")
        left = code.let(f"or i64 {high}, {low}")
        places = [code.place(keys, one, "i64") for one in (left, code.let(f"or i64 {left}, {1 << bit}"))]
        values = [code.get("i64", place) for place in places]
        for place, own, other in zip(places, values, reversed(values), strict=True):
            further = code.add(other, FAR)
            code.set("i64", code.choose(code.compare("slt", own, further), own, further), place)


def _source(
    code: Assembly, dim: int, cell: str, start: str, rooms: tuple[str, ...], document: bool, fill: bool
) -> None:
    """Note where a cell's vector stands and what it is multiplied by: its sum, a point, or nothing."""
    sums, counts, keys, sources, scales, zeros = rooms
    count = code.get("i64", code.place(counts, cell, "i64"))
    own = code.let(f"ptrtoint ptr {code.place(sums, code.multiply(cell, dim), 'float')} to i64")
    empty = code.compare("eq", count, 0)
    if document and fill:
        point = code.add(start, code.let(f"and i64 {code.get('i64', code.place(keys, cell, 'i64'))}, {FAR - 1}"))
        other = code.let(f"ptrtoint ptr {code.place('%pointsptr', code.multiply(point, dim), 'float')} to i64")
    else:
        other = code.let(f"ptrtoint ptr {zeros} to i64")
    code.set("i64", code.choose(empty, other, own), code.place(sources, cell, "i64"))
    scale = "1.0"
    if document:
        share = code.let(f"fdiv float 1.0, {code.let(f'sitofp i64 {count} to float')}")
        scale = code.choose(empty, "1.0", share, "float")
    code.set("float", scale, code.place(scales, cell, "float"))


def _project(
    code: Assembly, dim: int, width: int, together: int, first: str, sources: str, scales: str, planes: str, out: str
) -> None:
    """Write the projections of some cells."""
    lanes = LANES if width % LANES == 0 else 8
    cells = [code.add(first, number) for number in range(together)]
    rows = [code.let(f"inttoptr i64 {code.get('i64', code.place(sources, cell, 'i64'))} to ptr") for cell in cells]
    for column in range(0, width, lanes):
        totals = [code.variable(floats(lanes), same(lanes, "float", "0.0")) for _ in rows]
        for total in totals:
            code.set(floats(lanes), same(lanes, "float", "0.0"), total)
        with code.loop("0", str(dim)) as at:
            plane = code.get(floats(lanes), code.place(planes, code.add(code.multiply(at, width), column), "float"))
            for row, total in zip(rows, totals, strict=True):
                value = spread(code, code.get("float", code.place(row, at, "float")), lanes)
                code.set(floats(lanes), multiply_add(code, lanes, value, plane, code.get(floats(lanes), total)), total)
        for cell, total in zip(cells, totals, strict=True):
            scale = spread(code, code.get("float", code.place(scales, cell, "float")), lanes)
            made = code.let(f"fmul {floats(lanes)} {code.get(floats(lanes), total)}, {scale}")
            code.set(floats(lanes), made, code.place(out, code.add(code.multiply(cell, width), column), "float"))
