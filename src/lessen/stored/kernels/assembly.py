"""Writes one function in LLVM assembly, line by line: values, memory, loops and checked indices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Assembly:
    """Lines of one function. A value is the name of a register; every line that makes one returns it.

    `variable` gives memory of a few bytes that the compiler turns into registers. Indices that come from data pass
    through `below`: a wrong one sets the variable `bad` and reads place 0, so that nothing is read out of bounds.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.variables: list[str] = []
        self.constants: list[str] = []
        self.declared: dict[str, str] = {}
        self.count = 0
        self.bad = self.variable("i1", "false")

    def name(self) -> str:
        """Return a new register name."""
        self.count += 1
        return f"%v{self.count}"

    def let(self, text: str) -> str:
        """Add a line that makes a value; return the value."""
        name = self.name()
        self.lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        """Add a line without a value."""
        self.lines.append(f"  {text}")

    def variable(self, kind: str, initial: str) -> str:
        """Return the place of a variable of the function, set once at its entry."""
        name = self.name()
        self.variables += [f"  {name} = alloca {kind}", f"  store {kind} {initial}, ptr {name}"]
        return name

    def room(self, kind: str, count: int) -> str:
        """Return the place of `count` variables side by side, which hold anything until they are set."""
        name = self.name()
        self.variables.append(f"  {name} = alloca [{count} x {kind}], align 64")
        return name

    def get(self, kind: str, place: str) -> str:
        """Return what lies at an address; it need not be aligned."""
        return self.let(f"load {kind}, ptr {place}, align 1")

    def set(self, kind: str, value: str, place: str) -> None:
        """Store a value at an address."""
        self.do(f"store {kind} {value}, ptr {place}, align 1")

    def call(self, kind: str, name: str, kinds: Sequence[str], values: Sequence[str]) -> str:
        """Return what a function outside, named without "@", answers."""
        self.declared[name] = f"declare {kind} @{name}({', '.join(kinds)})"
        given = ", ".join(f"{one} {value}" for one, value in zip(kinds, values, strict=True))
        return self.let(f"call {kind} @{name}({given})")

    def number(self, address: str, index: str) -> str:
        """Return element `index` of int64 numbers at an address given as i64."""
        return self.get("i64", self.place(self.let(f"inttoptr i64 {address} to ptr"), index, "i64"))

    def entry(self, values: Sequence[int], index: str) -> str:
        """Return values[index] of numbers that are known now; the index must lie inside."""
        if len(set(values)) == 1:
            return str(values[0])
        name = f"@table{len(self.constants)}"
        self.constants.append(f"{name} = private constant [{len(values)} x i64] [{constant('i64', values)[1:-1]}]")
        return self.get("i64", self.place(name, index, "i64"))

    def place(self, base: str, index: str, kind: str = "i8") -> str:
        """Return the address of element `index` (i64) after `base`."""
        return self.let(f"getelementptr {kind}, ptr {base}, i64 {index}")

    def add(self, left: str, right: str | int) -> str:
        """Return the sum of two i64."""
        return self.let(f"add i64 {left}, {right}")

    def multiply(self, left: str, right: str | int) -> str:
        """Return the product of two i64."""
        return self.let(f"mul i64 {left}, {right}")

    def choose(self, condition: str, yes: str, no: str | int, kind: str = "i64") -> str:
        """Return `yes` where the condition holds, else `no`."""
        return self.let(f"select i1 {condition}, {kind} {yes}, {kind} {no}")

    def compare(self, how: str, left: str, right: str | int) -> str:
        """Return an i1: two i64 compared (eq, ult, sle, ...)."""
        return self.let(f"icmp {how} i64 {left}, {right}")

    def wide(self, value: str, kind: str, how: str = "zext") -> str:
        """Return an integer of `kind` as i64."""
        return self.let(f"{how} {kind} {value} to i64")

    def require(self, condition: str) -> None:
        """Note that the call cannot be answered unless the condition holds."""
        failed = self.let(f"xor i1 {condition}, true")
        known = self.get("i1", self.bad)
        self.set("i1", self.let(f"or i1 {known}, {failed}"), self.bad)

    def below(self, index: str, limit: str | int) -> str:
        """Return the index (i64) if it lies in [0, limit); else note the fault and return 0."""
        inside = self.compare("ult", index, limit)
        self.require(inside)
        return self.choose(inside, index, 0)

    def prefetch(self, start: str, size: int, aligned: bool = False) -> None:
        """Ask for the cache lines of `size` bytes from an address, which may be any number at all.

        `aligned`: the bytes start with a line, or are one number; else their last may lie in one line more.
        """
        self.declared["llvm.prefetch.p0"] = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"
        for offset in [*range(0, size, 64), *([] if aligned else [size - 1])]:
            place = self.place(start, str(offset))
            self.do(f"call void @llvm.prefetch.p0(ptr {place}, i32 0, i32 3, i32 1)")

    @contextmanager
    def loop(self, start: str, stop: str) -> Iterator[str]:
        """Repeat the lines of the block for i64 `start` to `stop` - 1; yield the number."""
        label, counter = self.name()[1:], self.variable("i64", "0")
        self.set("i64", start, counter)
        self.do(f"br label %head{label}")
        self.lines.append(f"head{label}:")
        number = self.get("i64", counter)
        more = self.compare("slt", number, stop)
        self.do(f"br i1 {more}, label %body{label}, label %done{label}")
        self.lines.append(f"body{label}:")
        yield number
        self.set("i64", self.add(number, 1), counter)
        self.do(f"br label %head{label}")
        self.lines.append(f"done{label}:")

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """Run the lines of the block where the condition, an i1, holds."""
        label = self.name()[1:]
        self.do(f"br i1 {condition}, label %then{label}, label %next{label}")
        self.lines.append(f"then{label}:")
        yield
        self.do(f"br label %next{label}")
        self.lines.append(f"next{label}:")


def floats(width: int) -> str:
    """Return the kind of `width` float32."""
    return f"<{width} x float>"


def same(width: int, kind: str, value: str | int | float) -> str:
    """Return a constant vector of equal elements."""
    return constant(kind, [value] * width)


def constant(kind: str, values: Sequence[str | int | float]) -> str:
    """Return a constant vector."""
    return "<" + ", ".join(f"{kind} {value}" for value in values) + ">"


def spread(code: Assembly, value: str, width: int, kind: str = "float") -> str:
    """Return a vector of `width` times the value, which is of `kind`."""
    vector = f"<{width} x {kind}>"
    one = code.let(f"insertelement {vector} poison, {kind} {value}, i32 0")
    return code.let(f"shufflevector {vector} {one}, {vector} poison, <{width} x i32> zeroinitializer")


def multiply_add(code: Assembly, width: int, left: str, right: str, to: str) -> str:
    """Return left * right + to, rounded once where the processor can."""
    kind = floats(width)
    return code.call(kind, f"llvm.fmuladd.v{width}f32", [kind] * 3, [left, right, to])


def firsts(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sum of all sizes before each."""
    return tuple(sum(sizes[:number]) for number in range(len(sizes)))


def block_of(code: Assembly, number: str, starts: tuple[int, ...]) -> tuple[str, str]:
    """Return the block that an id lies in and the id inside it; `starts` are the blocks' first ids, the first is 0."""
    if len(starts) == 1:
        return "0", number
    count = len(starts) - 1
    kind = f"<{count} x i64>"
    every = spread(code, number, count, "i64")
    reached = code.let(f"icmp sge {kind} {every}, {constant('i64', starts[1:])}")
    ones = code.let(f"zext <{count} x i1> {reached} to {kind}")
    block = code.call("i64", f"llvm.vector.reduce.add.v{count}i64", [kind], [ones])
    return block, code.let(f"sub i64 {number}, {code.entry(starts, block)}")
