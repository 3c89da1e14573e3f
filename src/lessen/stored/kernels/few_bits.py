"""Scores of int8 queries against packed codes of 1, 2 or 4 bits, read as they are stored: one pass, nothing unpacked.

A byte holds 8 / bits codes. Plane s of a row is (bytes >> s * bits) & mask, codes below 16, and meets the numbers of
the query that lie there; `vpdpbusd` multiplies four bytes at a time and sums in int32, exactly. What a score takes
besides is done where the sum lies: passes over all rows, one a factor, would take longer than the products.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from lessen.stored.kernels import machine, plain, recorded, watched
from lessen.stored.kernels.assembly import Assembly, same, spread
from lessen.stored.kernels.functions import Function

NAMES = ("state", "codes", "rows", "queries", "count", "shifts", "scales", "factors", "offsets", "out")
SMALLEST = 64
"""Rows from which a kernel is made."""
WIDE = 64
"""Bytes of a register: rows that are shorter are multiplied side by side."""
TILE = 16
"""Rows that are scored together: their sums end in one register."""


def takes(codes: Tensor, queries: Tensor) -> bool:
    """Tell whether the kernel may answer for packed codes, uint8 [rows, bytes]: it needs VNNI of 512 bits."""
    if not (codes.is_cpu and queries.is_cpu and len(codes) >= SMALLEST and codes.shape[1] % 16 == 0):
        return False
    usable = codes.is_contiguous() and not recorded() and not watched() and plain(codes, torch.is_grad_enabled())
    return usable and machine.available() and all(
        machine.features().get(name) for name in ("avx512vnni", "avx512bw", "avx512vl")
    )  # fmt: skip


def scores(
    queries: Tensor, codes: Tensor, bits: int, scales: Tensor, factors: Tensor, offsets: Tensor
) -> Tensor:  # fmt: skip
    """Return scale of a query * factor of a row * its levels' product with the query + offset, float32 [B, rows].

    The levels of codes c are 2 c - (2^bits - 1).

    Args:
        queries: int8 [B, dim]; scales, offsets: float32 [B]; factors: float32 [rows], all contiguous.
        codes: uint8 [rows, bytes], see `stored.bits`; dim is 8 / bits times the bytes.
    """
    planes = 8 // bits
    given = queries.view(len(queries), codes.shape[1], planes).transpose(1, 2).contiguous()
    shifts = queries.sum(1, dtype=torch.int32) * ((1 << bits) - 1)
    out = torch.empty(len(queries), len(codes))
    state = (ctypes.c_int64 * 3)(1, 0, 0)
    values = [
        ctypes.addressof(state), codes.data_ptr(), len(codes), given.data_ptr(), len(queries), shifts.data_ptr(),
        scales.data_ptr(), factors.data_ptr(), offsets.data_ptr(), out.data_ptr(),
    ]  # fmt: skip
    machine.run(_kernel(codes.shape[1], bits), (ctypes.c_int64 * len(values))(*values), 1)
    return out


@cache
def _kernel(size: int, bits: int) -> int:
    function = Function(NAMES)
    code = function.code
    tiles = code.let(f"sdiv i64 %rows, {TILE}")
    with code.loop("0", tiles) as tile, code.loop("0", "%count") as query:
        _scored(code, size, bits, code.multiply(tile, TILE), query, TILE)
    with code.loop(code.multiply(tiles, TILE), "%rows") as row, code.loop("0", "%count") as query:
        _scored(code, size, bits, row, query, 1)
    return machine.compiled(function.text())


def _scored(code: Assembly, size: int, bits: int, row: str, query: str, count: int) -> None:
    """Write the scores of `count` rows from `row` on."""
    sums = _parts_added(code, _sums(code, size, bits, row, query, count), count)
    kind, whole, ones = f"<{count} x float>", f"<{count} x i32>", same(count, "i32", 1)
    shift = spread(code, code.get("i32", code.place("%shiftsptr", query, "i32")), count, "i32")
    level = code.let(f"sub {whole} {code.let(f'shl {whole} {sums}, {ones}')}, {shift}")
    value = code.let(f"sitofp {whole} {level} to {kind}")
    scale, offset = (
        spread(code, code.get("float", code.place(f"%{name}ptr", query, "float")), count)
        for name in ("scales", "offsets")
    )
    factors = code.get(kind, code.place("%factorsptr", row, "float"))
    value = code.let(f"fmul {kind} {code.let(f'fmul {kind} {value}, {scale}')}, {factors}")
    place = code.place("%outptr", code.add(code.multiply(query, "%rows"), row), "float")
    code.set(kind, code.let(f"fadd {kind} {value}, {offset}"), place)


def _sums(code: Assembly, size: int, bits: int, row: str, query: str, count: int) -> list[tuple[str, int]]:
    """Return vectors of int32, and their lanes, whose equal parts, one a row, add up to the products of rows."""
    planes, side = 8 // bits, WIDE // size if count > 1 and WIDE % size == 0 else 1
    width = next(wide for wide in (64, 32, 16) if side * size % wide == 0)
    own, lanes = min(size, width), width // 4
    held, kind = f"<{width} x i8>", f"<{lanes} x i32>"
    spread = ", ".join(f"i32 {number % own}" for number in range(width))
    start = code.place("%codesptr", code.multiply(row, size))
    asked = code.place("%queriesptr", code.multiply(query, planes * size))
    totals = ["zeroinitializer"] * (count // side)
    for at in range(0, side * size, width):
        for plane in range(planes):
            other = code.get(f"<{own} x i8>", code.place(asked, str(plane * size + at % size)))
            if side > 1:
                other = code.let(f"shufflevector <{own} x i8> {other}, <{own} x i8> poison, <{width} x i32> <{spread}>")
            for number, total in enumerate(totals):
                packed = code.get(held, code.place(start, str(number * side * size + at)))
                moved = code.let(f"lshr {held} {packed}, {same(width, 'i8', plane * bits)}") if plane else packed
                part = code.let(f"and {held} {moved}, {same(width, 'i8', (1 << bits) - 1)}")
                fours = [code.let(f"bitcast {held} {one} to {kind}") for one in (part, other)]
                name = f"llvm.x86.avx512.vpdpbusd.{8 * width}"
                totals[number] = code.call(kind, name, [kind] * 3, [total, *fours])
    return [(total, lanes) for total in totals]


def _parts_added(code: Assembly, parts: list[tuple[str, int]], count: int) -> str:
    """Return the sum of each of `count` equal parts of vectors side by side, one vector of int32."""
    while len(parts) > 1 or parts[0][1] > count:
        lanes = parts[0][1]
        several = lanes * len(parts) > count  # parts of more than one lane: neighbours are added
        pairs = zip(parts[::2], parts[1::2], strict=True) if len(parts) > 1 else [(parts[0], ("poison", lanes))]
        wide = 2 * lanes if len(parts) > 1 else lanes
        made = []
        for (left, _), (right, _) in pairs:
            kind = f"<{lanes} x i32>"
            if several:
                halves = [_chosen(code, kind, left, right, range(first, wide, 2)) for first in (0, 1)]
                made.append((code.let(f"add <{wide // 2} x i32> {halves[0]}, {halves[1]}"), wide // 2))
            else:
                made.append((_chosen(code, kind, left, right, range(wide)), wide))
        parts = made
    return parts[0][0]


def _chosen(code: Assembly, kind: str, left: str, right: str, lanes: range) -> str:
    mask = ", ".join(f"i32 {lane}" for lane in lanes)
    return code.let(f"shufflevector {kind} {left}, {kind} {right}, <{len(lanes)} x i32> <{mask}>")
