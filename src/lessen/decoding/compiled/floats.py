"""Float32 vectors in assembly: constants, sums over a vector, and the exponential."""

from __future__ import annotations

import struct

from lessen.stored.kernels.assembly import Assembly, floats, multiply_add, same, spread

LANES = 8
KIND = floats(LANES)
WHOLE = f"<{LANES} x i32>"
LEAST = -87.0
"""Below it an exponential counts as 0."""
_TERMS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""Coefficients of (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, the highest first (Cephes' single precision)."""


def real(value: float) -> str:
    """Return a float32 as LLVM writes it: the bits of the double that equals it."""
    rounded = struct.unpack("f", struct.pack("f", value))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"


def many(value: float) -> str:
    """Return a constant vector."""
    return same(LANES, "float", real(value))


def total(code: Assembly, value: str) -> str:
    """Return the sum over a vector, in any order."""
    name = f"llvm.vector.reduce.fadd.v{LANES}f32"
    code.declared[name] = f"declare float @{name}(float, {KIND})"
    return code.let(f"call reassoc float @{name}(float {real(0.0)}, {KIND} {value})")


def largest(code: Assembly, left: str, right: str) -> str:
    """Return the larger of two vectors, element by element."""
    more = code.let(f"fcmp ogt {KIND} {left}, {right}")
    return code.let(f"select <{LANES} x i1> {more}, {KIND} {left}, {KIND} {right}")


def exponential(code: Assembly, value: str) -> str:
    """Return e^value for values of at most 88, to two units in the last place; 0 below `LEAST`."""
    tiny = code.let(f"fcmp olt {KIND} {value}, {many(LEAST)}")
    inside = largest(code, value, many(LEAST))
    scaled = code.let(f"fmul {KIND} {inside}, {many(1.4426950408889634)}")
    whole = code.call(KIND, f"llvm.rint.v{LANES}f32", [KIND], [scaled])
    rest = multiply_add(code, LANES, whole, many(-0.693359375), inside)
    rest = multiply_add(code, LANES, whole, many(2.12194440e-4), rest)
    power = many(_TERMS[0])
    for term in _TERMS[1:]:
        power = multiply_add(code, LANES, power, rest, many(term))
    square = code.let(f"fmul {KIND} {rest}, {rest}")
    power = multiply_add(code, LANES, power, square, rest)
    power = code.let(f"fadd {KIND} {power}, {many(1.0)}")
    shift = code.let(f"fptosi {KIND} {whole} to {WHOLE}")
    exponent = code.let(f"add {WHOLE} {shift}, {same(LANES, 'i32', 127)}")
    bits = code.let(f"shl {WHOLE} {exponent}, {same(LANES, 'i32', 23)}")
    found = code.let(f"fmul {KIND} {power}, {code.let(f'bitcast {WHOLE} {bits} to {KIND}')}")
    return code.let(f"select <{LANES} x i1> {tiny}, {KIND} zeroinitializer, {KIND} {found}")


def exponential_of(code: Assembly, value: str) -> str:
    """Return e^value of one float."""
    return code.let(f"extractelement {KIND} {exponential(code, spread(code, value, LANES))}, i32 0")
