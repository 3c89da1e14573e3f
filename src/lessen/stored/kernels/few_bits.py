"""Products of int8 queries with packed codes of 1, 2 or 4 bits, read as they are stored: one pass, nothing unpacked.

A byte holds 8 / bits codes. Plane s of a row is (bytes >> s * bits) & mask, codes below 16, and meets the numbers of
the query that lie there; `vpdpbusd` multiplies four bytes at a time and sums in int32, exactly.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from lessen.stored.kernels import machine, plain, recorded, watched
from lessen.stored.kernels.assembly import same
from lessen.stored.kernels.functions import Function

NAMES = ("state", "codes", "rows", "queries", "count", "out")
SMALLEST = 64
"""Rows from which a kernel is made."""


def takes(codes: Tensor, queries: Tensor) -> bool:
    """Tell whether the kernel may answer for packed codes, uint8 [rows, bytes]: it needs VNNI of 512 bits."""
    if not (codes.is_cpu and queries.is_cpu and len(codes) >= SMALLEST and codes.shape[1] % 16 == 0):
        return False
    usable = codes.is_contiguous() and not recorded() and not watched() and plain(codes, torch.is_grad_enabled())
    return usable and machine.available() and all(
        machine.features().get(name) for name in ("avx512vnni", "avx512bw", "avx512vl")
    )  # fmt: skip


def products(queries: Tensor, codes: Tensor, bits: int) -> Tensor:
    """Return the products of int8 [B, dim] and the unsigned codes of each row, int32 [B, rows].

    Args:
        codes: uint8 [rows, bytes], see `stored.bits`; dim is 8 / bits times the bytes.
    """
    planes = 8 // bits
    given = queries.view(len(queries), codes.shape[1], planes).transpose(1, 2).contiguous()
    out = torch.empty(len(queries), len(codes), dtype=torch.int32)
    state = (ctypes.c_int64 * 3)(1, 0, 0)
    values = [
        ctypes.addressof(state), codes.data_ptr(), len(codes), given.data_ptr(), len(queries), out.data_ptr(),
    ]  # fmt: skip
    machine.run(_kernel(codes.shape[1], bits), (ctypes.c_int64 * len(values))(*values), 1)
    return out


@cache
def _kernel(size: int, bits: int) -> int:
    function = Function(NAMES)
    code, planes = function.code, 8 // bits
    width = next(wide for wide in (64, 32, 16) if size % wide == 0)
    lanes = width // 4
    held, sums = f"<{width} x i8>", f"<{lanes} x i32>"
    with code.loop("0", "%rows") as row, code.loop("0", "%count") as query:
        total = code.variable(sums, "zeroinitializer")
        code.set(sums, "zeroinitializer", total)
        start = code.place("%codesptr", code.multiply(row, size))
        asked = code.place("%queriesptr", code.multiply(query, planes * size))
        for at in range(0, size, width):
            packed = code.get(held, code.place(start, str(at)))
            for plane in range(planes):
                moved = code.let(f"lshr {held} {packed}, {same(width, 'i8', plane * bits)}") if plane else packed
                part = code.let(f"and {held} {moved}, {same(width, 'i8', (1 << bits) - 1)}")
                other = code.get(held, code.place(asked, str(plane * size + at)))
                fours = [code.let(f"bitcast {held} {one} to {sums}") for one in (part, other)]
                before = code.get(sums, total)
                name = f"llvm.x86.avx512.vpdpbusd.{8 * width}"
                code.set(sums, code.call(sums, name, [sums] * 3, [before, *fours]), total)
        whole = code.call("i32", f"llvm.vector.reduce.add.v{lanes}i32", [sums], [code.get(sums, total)])
        code.set("i32", whole, code.place("%outptr", code.add(code.multiply(query, "%rows"), row), "i32"))
    return machine.compiled(function.text())
