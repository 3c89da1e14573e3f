"""Writes the kernel that rounds rows of activations to int8: a step for each block of each row.

    step = largest |x| of the block / 127
    code = x * (127 / largest |x|), to the nearest whole number, ties to even

A block whose largest is below 1e-30 has codes 0. NaN or infinity in a row makes its step, and so its outputs, NaN or
infinite. A block gets, beside the codes, what products start with: offset * (sum of codes), int32, and step * (sum of
codes), float32. Rows that are `kept` are copied as they are into blocks that are filled up; beside them a block gets
the sum of its inputs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lessen.stored.kernels.assembly import Assembly, floats, same, spread
from lessen.stored.kernels.dots import LARGEST
from lessen.stored.kernels.functions import Function, share
from lessen.stored.kernels.panels import filled

LEAST = 1e-30
"""Size of activations below which a block is all zero."""
LEAST_BITS, SIZE = struct.unpack("i", struct.pack("f", LEAST))[0], 0x7FFFFFFF
"""That number, and all but the sign, as bits of float32."""
LANES = 8
HEAD = ("state", "given", "apart", "codes", "steps", "starts", "sums", "blocks", "stride")
"""Arguments: address of float32 rows and floats from one to the next; where codes, steps, starting integers and sums of
a row go; full blocks of a row; bytes of a row of codes, which hold 0 where blocks are filled up."""
KIND = floats(LANES)
WHOLE = f"<{LANES} x i32>"


@dataclass(frozen=True)
class Rounding:
    """What the lines depend on: inputs of a block and of the one at the end (0: none), and the products' offset.

    `across`: one step for the whole row, in place of one a block, and codes x / step, as `Int8Linear` has them.
    `kept`: nothing is rounded.
    """

    inputs: int
    tail: int
    offset: int
    across: bool = False
    kept: bool = False


def write(rounding: Rounding) -> str:
    """Return the assembly of `kernel(ptr)`."""
    function = Function(HEAD)
    code = function.code
    every = code.add("%blocks", 1 if rounding.tail else 0)
    first, last = share(function, function.state("rows"))
    with code.loop(first, last) as row:
        given = code.place("%givenptr", code.multiply(row, "%apart"), "float")
        codes = code.place("%codesptr", code.multiply(row, "%stride"), "float" if rounding.kept else "i8")
        numbers = code.multiply(row, every)
        largest = _row_largest(code, rounding, given) if rounding.across else ""
        with code.loop("0", "%blocks") as block:
            _block(code, rounding, rounding.inputs, block, given, codes, code.add(numbers, block), largest)
        if rounding.tail:
            _block(code, rounding, rounding.tail, "%blocks", given, codes, code.add(numbers, "%blocks"), largest)
    return function.text()


def _row_largest(code: Assembly, rounding: Rounding, given: str) -> str:
    """Return the largest |x| of a row, as the bits of a float."""
    top = code.variable("i32", "0")
    code.set("i32", "0", top)
    with code.loop("0", "%blocks") as block:
        here = code.place(given, code.multiply(block, rounding.inputs), "float")
        code.set("i32", _larger(code, code.get("i32", top), _largest(code, here, rounding.inputs)), top)
    if rounding.tail:
        here = code.place(given, code.multiply("%blocks", rounding.inputs), "float")
        code.set("i32", _larger(code, code.get("i32", top), _largest(code, here, rounding.tail)), top)
    return code.get("i32", top)


def _larger(code: Assembly, left: str, right: str, kind: str = "i32") -> str:
    """Return the larger of whole numbers."""
    name = "llvm.smax.i32" if kind == "i32" else f"llvm.smax.v{LANES}i32"
    return code.call(kind, name, [kind] * 2, [left, right])


def _largest(code: Assembly, place: str, inputs: int) -> str:
    """Return the bits of the largest |x| of some floats at an address. Bits are in the order of |x|, NaN above all."""
    top, whole = code.variable("i32", "0"), inputs // LANES
    code.set("i32", "0", top)
    size = same(LANES, "i32", SIZE)
    for first in range(0, whole, 8):  # in turns, so that no vector waits for the one before
        tops = ["zeroinitializer"] * min(4, whole - first)
        for number in range(first, min(first + 8, whole)):
            value = code.get(WHOLE, code.place(place, str(number * LANES), "float"))
            turn = (number - first) % len(tops)
            tops[turn] = _larger(code, tops[turn], code.let(f"and {WHOLE} {value}, {size}"), WHOLE)
        for other in tops[1:]:
            tops[0] = _larger(code, tops[0], other, WHOLE)
        found = code.call("i32", f"llvm.vector.reduce.smax.v{LANES}i32", [WHOLE], [tops[0]])
        code.set("i32", _larger(code, code.get("i32", top), found), top)
    with code.loop(str(whole * LANES), str(inputs)) as rest:
        value = code.let(f"and i32 {code.get('i32', code.place(place, rest, 'float'))}, {SIZE}")
        code.set("i32", _larger(code, code.get("i32", top), value), top)
    return code.get("i32", top)


def _block(
    code: Assembly, rounding: Rounding, inputs: int, block: str, given: str, codes: str, number: str, largest: str
) -> None:
    """Round one block, or copy it; `number` counts it among all blocks of all rows."""
    here = code.place(given, code.multiply(block, rounding.inputs), "float")
    if rounding.kept:
        there = code.place(codes, code.multiply(block, filled(rounding.inputs)), "float")
        code.set("float", _copied(code, here, there, inputs), code.place("%sumsptr", number, "float"))
        return
    there = code.place(codes, code.multiply(block, filled(rounding.inputs)))
    bits = _larger(code, largest or _largest(code, here, inputs), str(LEAST_BITS))
    top = code.let(f"bitcast i32 {bits} to float")
    factor, step = code.let(f"fdiv float {LARGEST}.0, {top}"), code.let(f"fdiv float {top}, {LARGEST}.0")
    sums, whole = "zeroinitializer", inputs // LANES
    how, by = ("fdiv", step) if rounding.across else ("fmul", factor)
    many = spread(code, by, LANES)
    for part in range(whole):
        value = code.get(KIND, code.place(here, str(part * LANES), "float"))
        rounded = _rounded(code, code.let(f"{how} {KIND} {value}, {many}"), KIND, WHOLE, f"v{LANES}")
        sums = code.let(f"add {WHOLE} {sums}, {rounded}")
        less = code.let(f"trunc {WHOLE} {rounded} to <{LANES} x i8>")
        code.set(f"<{LANES} x i8>", less, code.place(there, str(part * LANES)))
    total = code.variable("i32", "0")
    code.set("i32", code.call("i32", f"llvm.vector.reduce.add.v{LANES}i32", [WHOLE], [sums]), total)
    with code.loop(str(whole * LANES), str(inputs)) as at:
        value = code.get("float", code.place(here, at, "float"))
        rounded = _rounded(code, code.let(f"{how} float {value}, {by}"), "float", "i32", "")
        code.set("i8", code.let(f"trunc i32 {rounded} to i8"), code.place(there, at))
        code.set("i32", code.let(f"add i32 {code.get('i32', total)}, {rounded}"), total)
    code.set("float", step, code.place("%stepsptr", number, "float"))
    summed = code.get("i32", total)
    start = code.let(f"mul i32 {summed}, {rounding.offset}")
    code.set("i32", start, code.place("%startsptr", number, "i32"))
    shift = code.let(f"fmul float {code.let(f'sitofp i32 {summed} to float')}, {step}")
    code.set("float", shift, code.place("%sumsptr", number, "float"))


def _copied(code: Assembly, here: str, there: str, inputs: int) -> str:
    """Copy some floats; return their sum: eight sums of every eighth, added up, then what is left, in order."""
    sums, whole = "zeroinitializer", inputs // LANES
    for part in range(whole):
        value = code.get(KIND, code.place(here, str(part * LANES), "float"))
        code.set(KIND, value, code.place(there, str(part * LANES), "float"))
        sums = code.let(f"fadd {KIND} {sums}, {value}")
    total = code.variable("float", "0.0")
    name = f"llvm.vector.reduce.fadd.v{LANES}f32"
    code.set("float", code.call("float", name, ["float", KIND], ["0.0", sums]), total)
    with code.loop(str(whole * LANES), str(inputs)) as at:
        value = code.get("float", code.place(here, at, "float"))
        code.set("float", value, code.place(there, at, "float"))
        code.set("float", code.let(f"fadd float {code.get('float', total)}, {value}"), total)
    return code.get("float", total)


def _rounded(code: Assembly, value: str, kind: str, whole: str, many: str) -> str:
    """Return the nearest whole number, ties to even, of a number of at most 127 or of NaN, which becomes anything."""
    near = code.call(kind, f"llvm.rint.{many}f32", [kind], [value])
    return code.let(f"freeze {whole} {code.let(f'fptosi {kind} {near} to {whole}')}")
