"""Steps that work on rows of float32: the root mean square norm, factors of inputs, a feed-forward layer's gate."""

from __future__ import annotations

from lessen.decoding.compiled.floats import KIND, LANES, exponential, many, real, total
from lessen.stored.kernels.assembly import Assembly, multiply_add, spread
from lessen.stored.kernels.functions import Function, share

NORM = ("state", "given", "width", "weight", "out")
"""Rows `given` of `width` float32, one after the other, are normed into rows `out`."""
SCALE = ("state", "given", "width", "factors", "out")
"""Rows `given` of `width` float32 are multiplied by a factor a column into rows `out`."""
GATE = ("state", "given", "width", "out")
"""Rows of `given` hold gates and then as many values, `width` each; `out` gets silu(gate) * value."""


def norm(epsilon: float) -> str:
    """Return the assembly of x / sqrt(mean(x^2) + epsilon) * weight; the width is a multiple of 8."""
    function = Function(NORM)
    code = function.code
    with code.loop(*share(function, function.state("rows"))) as row:
        first = code.multiply(row, "%width")
        normed(code, code.place("%givenptr", first, "float"), code.place("%outptr", first, "float"), "%width", epsilon)
    return function.text()


def normed(code: Assembly, given: str, out: str, width: str, epsilon: float, weight: str = "%weightptr") -> None:
    """Write the norm of one row; it may stay in its place."""
    squares = code.variable(KIND, "zeroinitializer")
    code.set(KIND, "zeroinitializer", squares)
    parts = code.let(f"sdiv i64 {width}, {LANES}")
    with code.loop("0", parts) as part:
        value = code.get(KIND, code.place(given, code.multiply(part, LANES), "float"))
        code.set(KIND, multiply_add(code, LANES, value, value, code.get(KIND, squares)), squares)
    mean = code.let(f"fdiv float {total(code, code.get(KIND, squares))}, {code.let(f'sitofp i64 {width} to float')}")
    root = code.call("float", "llvm.sqrt.f32", ["float"], [code.let(f"fadd float {mean}, {real(epsilon)}")])
    factor = spread(code, code.let(f"fdiv float {real(1.0)}, {root}"), LANES)
    with code.loop("0", parts) as part:
        at = code.multiply(part, LANES)
        value = code.let(f"fmul {KIND} {code.get(KIND, code.place(given, at, 'float'))}, {factor}")
        by = code.get(KIND, code.place(weight, at, "float"))
        code.set(KIND, code.let(f"fmul {KIND} {value}, {by}"), code.place(out, at, "float"))


def scale() -> str:
    """Return the assembly of x * factors; the width is a multiple of 8."""
    function = Function(SCALE)
    code = function.code
    with code.loop(*share(function, function.state("rows"))) as row:
        first = code.multiply(row, "%width")
        with code.loop("0", code.let(f"sdiv i64 %width, {LANES}")) as part:
            at = code.multiply(part, LANES)
            value, factor = (
                code.get(KIND, code.place(place, at, "float"))
                for place in (code.place("%givenptr", first, "float"), "%factorsptr")
            )
            there = code.place(code.place("%outptr", first, "float"), at, "float")
            code.set(KIND, code.let(f"fmul {KIND} {value}, {factor}"), there)
    return function.text()


def gate() -> str:
    """Return the assembly of silu(gate) * value, silu(x) = x / (1 + e^-x); the width is a multiple of 8."""
    function = Function(GATE)
    code = function.code
    with code.loop(*share(function, function.state("rows"))) as row:
        given = code.place("%givenptr", code.multiply(code.multiply(row, "%width"), 2), "float")
        out = code.place("%outptr", code.multiply(row, "%width"), "float")
        with code.loop("0", code.let(f"sdiv i64 %width, {LANES}")) as part:
            at = code.multiply(part, LANES)
            gates = code.get(KIND, code.place(given, at, "float"))
            values = code.get(KIND, code.place(given, code.add(at, "%width"), "float"))
            least = code.let(f"fcmp ogt {KIND} {gates}, {many(-88.0)}")
            inside = code.let(f"select <{LANES} x i1> {least}, {KIND} {gates}, {KIND} {many(-88.0)}")
            power = exponential(code, code.let(f"fneg {KIND} {inside}"))
            share_ = code.let(f"fdiv {KIND} {gates}, {code.let(f'fadd {KIND} {power}, {many(1.0)}')}")
            code.set(KIND, code.let(f"fmul {KIND} {share_}, {values}"), code.place(out, at, "float"))
    return function.text()
