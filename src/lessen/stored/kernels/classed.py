"""Sources whose rows are of classes: a class of a row says which columns it keeps, or how many bits its values have."""

from __future__ import annotations

import torch
from torch import Tensor

from lessen.stored.kernels.assembly import Assembly, constant, floats, same, spread
from lessen.stored.kernels.sources import Columns, Node, Upcoming, is_of, reaches
from lessen.stored.kernels.sparse import held, inside, lanes_of, low_bits, ones, spread_out


def class_of(code: Assembly, at: str, number: str, sizes: tuple[int, ...]) -> tuple[str, str]:
    """Return the class of a row and where it starts (see `stored.row_classes`); `sizes` are those of 16 classes."""
    block, place = code.let(f"lshr i64 {number}, 4"), code.let(f"and i64 {number}, 15")
    packed, start = code.number(f"%{at}classes", block), code.number(f"%{at}starts", block)
    shift = code.multiply(place, 4)
    kind = code.let(f"and i64 {code.let(f'lshr i64 {packed}, {shift}')}, 15")
    before = low_bits(code, packed, shift)
    if all(size == number * sizes[1] for number, size in enumerate(sizes)):
        return kind, code.add(start, code.multiply(_digits(code, before), sizes[1]))
    pairs = tuple(sizes[both & 15] + sizes[both >> 4] for both in range(256))
    for byte in range(8):
        both = code.let(f"and i64 {code.let(f'lshr i64 {before}, {8 * byte}')}, 255")
        start = code.add(start, code.entry(pairs, both))
    # the places from this row on were counted as class 0
    return kind, code.let(f"sub i64 {start}, {code.multiply(code.let(f'sub i64 16, {place}'), sizes[0])}")


def have_classes(classes: Tensor, starts: Tensor, rows: int) -> bool:
    """Tell whether classes and starts cover so many rows."""
    blocks = -(-rows // 16)
    return reaches(classes, torch.uint8, 8 * blocks) and reaches(starts, torch.int64, blocks)


def _digits(code: Assembly, packed: str) -> str:
    """Return the sum of the 16 half bytes of an i64, at most 255 together."""
    halves = [packed, code.let(f"lshr i64 {packed}, 4")]
    low, high = (code.let(f"and i64 {half}, {0x0F0F0F0F0F0F0F0F}") for half in halves)
    return code.let(f"lshr i64 {code.multiply(code.add(low, high), 0x0101010101010101)}, 56")


def ask_for_class(code: Assembly, at: str, number: str) -> None:
    """Prefetch what `class_of` reads."""
    block = code.let(f"lshr i64 {number}, 4")
    for name in ("classes", "starts"):
        code.prefetch(code.place(code.let(f"inttoptr i64 %{at}{name} to ptr"), block, "i64"), 8, aligned=True)


class GroupColumns(Node):
    """Rows with the columns of their group; `masks` int64 [16, blocks of 64 columns], `sizes` of 16 groups."""

    def __init__(
        self, values: Tensor, masks: Tensor, sizes: tuple[int, ...], classes: Tensor, starts: Tensor, rows: int
    ) -> None:
        given = {"values": values, "masks": masks, "classes": classes, "starts": starts}
        super().__init__(given, {}, (rows, masks.shape[1], sizes))
        self.rows, self.words, self.sizes = rows, masks.shape[1], sizes

    def sized(self) -> bool:
        """Tell whether each row has its class and each class its columns."""
        classes = have_classes(self.own["classes"], self.own["starts"], self.rows)
        return (
            classes and is_of(self.own["masks"], torch.int64, (len(self.sizes), self.words)) and len(self.sizes) == 16
        )

    @property
    def depth(self) -> int:  # type: ignore[override]
        """Class, then values."""
        return 2

    def blocks(self, dim: int) -> list[list[Columns]]:
        """Return vectors of 16."""
        return lanes_of(dim)

    def accepts(self, columns: list[Columns]) -> bool:
        """Tell whether the vectors are those of one load each, in a run of 64 columns."""
        end = columns[-1][0] + columns[-1][1]
        return columns[0][0] % 64 == 0 and end <= 64 * self.words and columns in lanes_of(end)

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return the row's values at the places of its group."""
        kind, start = class_of(code, at, code.below(number, self.rows), self.sizes)
        first = code.multiply(kind, self.words)
        chosen = columns[0][0] // 64
        for word in range(chosen):
            start = code.add(start, ones(code, code.number(f"%{at}masks", code.add(first, word))))
        mask = code.number(f"%{at}masks", code.add(first, chosen))
        start, mask = inside(code, start, mask, f"%{at}valuesn")
        return spread_out(code, code.let(f"inttoptr i64 %{at}values to ptr"), start, mask, columns)

    def prefetch(self, code: Assembly, at: str, upcoming: Upcoming) -> None:
        """Ask for the class first, for the values later."""
        ask_for_class(code, at, upcoming(2))
        number = upcoming(1)
        _, start = class_of(code, at, code.choose(code.compare("ult", number, self.rows), number, 0), self.sizes)
        code.prefetch(code.place(code.let(f"inttoptr i64 %{at}values to ptr"), start, "float"), 64)


class MixedBits(Node):
    """Rows of 0 to 8 bits a value, codes without gaps (see `stored.mixed_bits`)."""

    def __init__(
        self,
        packed: Tensor,
        classes: Tensor,
        starts: Tensor,
        steps: Tensor,
        offset: Tensor,
        sizes: tuple[int, ...],
        rows: int,
    ) -> None:
        given = {"packed": packed, "classes": classes, "starts": starts, "steps": steps, "offset": offset}
        super().__init__(given, {}, (sizes, rows))
        even = sizes == tuple(number * sizes[1] for number in range(len(sizes)))
        # classes that no row has cost nothing to count, if counting is then a sum
        self.sizes = sizes + tuple(number * sizes[1] if even else 0 for number in range(len(sizes), 16))
        self.rows = rows

    def sized(self) -> bool:
        """Tell whether each row has its class and each number of bits its step."""
        classes = have_classes(self.own["classes"], self.own["starts"], self.rows)
        return classes and self.own["packed"].dtype == torch.uint8 and self.own["steps"].shape == (9,)

    @property
    def depth(self) -> int:  # type: ignore[override]
        """Class, then codes."""
        return 2

    def blocks(self, dim: int) -> list[list[Columns]]:
        """Return columns that start at whole bytes for every number of bits."""
        return [[(first, min(64, dim - first))] for first in range(0, dim, 64)]

    def accepts(self, columns: list[Columns]) -> bool:
        """Tell whether it is one vector that starts with a byte, and rows reach so far."""
        end = columns[-1][0] + columns[-1][1]
        reached = self.own["offset"].numel() >= end and all(8 * self.sizes[bits] >= end * bits for bits in range(1, 9))
        return len(columns) == 1 and columns[0][0] % 8 == 0 and reached

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return the decoded columns."""
        bits, start = class_of(code, at, code.below(number, self.rows), self.sizes)
        right = held(code, start, code.entry(self.sizes, bits), f"%{at}packedn")
        right = code.let(f"and i1 {right}, {code.compare('ule', bits, 8)}")
        code.require(right)
        bits, start = code.choose(right, bits, 0), code.choose(right, start, 0)
        (first, width), kind = columns[0], floats(columns[0][1])
        kept = code.variable(kind, "zeroinitializer")
        code.set(kind, "zeroinitializer", kept)
        row = code.place(code.let(f"inttoptr i64 %{at}packed to ptr"), start)
        step = code.get("float", code.place(code.let(f"inttoptr i64 %{at}steps to ptr"), bits, "float"))
        offset = code.get(kind, code.place(code.let(f"inttoptr i64 %{at}offset to ptr"), str(first), "float"))
        for count in range(1, 9):
            with code.when(code.compare("eq", bits, count)):
                levels = _levels(code, code.place(row, str(first * count // 8)), width, count)
                scaled = code.let(f"fmul {kind} {levels}, {spread(code, step, width)}")
                code.set(kind, code.let(f"fadd {kind} {scaled}, {offset}"), kept)
        return [code.get(kind, kept)]

    def prefetch(self, code: Assembly, at: str, upcoming: Upcoming) -> None:
        """Ask for the class first, for the codes later."""
        ask_for_class(code, at, upcoming(2))
        number = upcoming(1)
        _, start = class_of(code, at, code.choose(code.compare("ult", number, self.rows), number, 0), self.sizes)
        code.prefetch(code.place(code.let(f"inttoptr i64 %{at}packed to ptr"), start), max(self.sizes))


def _levels(code: Assembly, start: str, width: int, bits: int) -> str:
    """Return `width` signed codes of `bits` bits from an address, as float32."""
    count = -(-width * bits // 8)
    raw = code.get(f"<{count} x i8>", start)
    kind, halves = f"<{width} x i32>", []
    for further in (0, 1):
        order = constant("i32", [min(number * bits // 8 + further, count - 1) for number in range(width)])
        picked = code.let(f"shufflevector <{count} x i8> {raw}, <{count} x i8> poison, {kind} {order}")
        halves.append(code.let(f"zext <{width} x i8> {picked} to {kind}"))
    high = code.let(f"shl {kind} {halves[1]}, {same(width, 'i32', 8)}")
    both = code.let(f"or {kind} {halves[0]}, {high}")
    shifted = code.let(f"lshr {kind} {both}, {constant('i32', [number * bits % 8 for number in range(width)])}")
    level = code.let(f"and {kind} {shifted}, {same(width, 'i32', 2**bits - 1)}")
    signed = code.let(f"sub {kind} {level}, {same(width, 'i32', 2 ** (bits - 1))}")
    return code.let(f"sitofp {kind} {signed} to {floats(width)}")
