"""Sources whose rows lack values, or lie at places that are counted: hot rows, bitmaps, narrow rows."""

from __future__ import annotations

import torch
from torch import Tensor

from lessen.stored.kernels.assembly import Assembly, block_of, constant, firsts, floats, spread
from lessen.stored.kernels.sources import Columns, Node, Source, Upcoming, reaches

LANES = 16
"""Columns that one load spreads out."""


def ones(code: Assembly, word: str) -> str:
    """Return the set bits of an i64."""
    return code.call("i64", "llvm.ctpop.i64", ["i64"], [word])


def low_bits(code: Assembly, word: str, count: str) -> str:
    """Return the lowest `count` bits of an i64, fewer than 64."""
    mask = code.add(code.let(f"shl i64 1, {count}"), -1)
    return code.let(f"and i64 {word}, {mask}")


def ranked(code: Assembly, at: str, names: tuple[str, str], position: str) -> tuple[str, str, str]:
    """Return the word of a position, its bit number, and the set bits before it (see `stored.ranked_bits`)."""
    place, bit = code.let(f"lshr i64 {position}, 6"), code.let(f"and i64 {position}, 63")
    word = code.number(f"%{at}{names[0]}", place)
    start = code.place(code.let(f"inttoptr i64 %{at}{names[1]} to ptr"), place, "i32")
    before = code.wide(code.get("i32", start), "i32", "sext")
    return word, bit, code.add(before, ones(code, low_bits(code, word, bit)))


def have_bits(words: Tensor, ranks: Tensor, positions: int) -> bool:
    """Tell whether words and counts cover so many positions."""
    count = -(-positions // 64)
    return reaches(words, torch.int64, count) and reaches(ranks, torch.int32, count)


def spread_out(code: Assembly, base: str, start: str, mask: str, columns: list[Columns]) -> list[str]:
    """Return values that follow one another from `start`, each at the place of a set bit of `mask`, zeros between."""
    found, kind = [], floats(LANES)
    for first, width in columns:
        bits = code.let(f"lshr i64 {mask}, {first - columns[0][0]}")
        bits = code.let(f"and i64 {bits}, {2**width - 1}")
        lanes = code.let(f"bitcast i{LANES} {code.let(f'trunc i64 {bits} to i{LANES}')} to <{LANES} x i1>")
        place = code.place(base, start, "float")
        kinds = ["ptr", f"<{LANES} x i1>", kind]
        value = code.call(kind, f"llvm.masked.expandload.v{LANES}f32", kinds, [place, lanes, "zeroinitializer"])
        if width < LANES:
            order = constant("i32", range(width))
            value = code.let(f"shufflevector {kind} {value}, {kind} poison, <{width} x i32> {order}")
        found.append(value)
        start = code.add(start, ones(code, bits))
    return found


def lanes_of(dim: int) -> list[list[Columns]]:
    """Return columns in vectors that one load spreads out, 64 columns at a time."""
    single = [(first, min(LANES, dim - first)) for first in range(0, dim, LANES)]
    return [single[number : number + 4] for number in range(0, len(single), 4)]


class Tiered(Node):
    """Rows of hot ids from one source, all others from another; a bit an id says which, counts say where."""

    def __init__(self, words: Tensor, counts: Tensor, hot: Source, cold: Source, rows: int) -> None:
        super().__init__({"words": words, "counts": counts}, {"cold": cold, "hot": hot}, (rows,))
        self.rows = rows

    def sized(self) -> bool:
        """Tell whether each row has its bit."""
        return have_bits(self.own["words"], self.own["counts"], self.rows)

    @property
    def depth(self) -> int:  # type: ignore[override]
        """One load more than the tiers."""
        return super().depth + 1

    def _find(self, code: Assembly, at: str, number: str) -> tuple[str, str]:
        """Return whether an id is hot, and its place among the hot ids (0 if it is not)."""
        word, bit, place = ranked(code, at, ("words", "counts"), number)
        hot = code.let(f"trunc i64 {code.let(f'lshr i64 {word}, {bit}')} to i1")
        return hot, code.choose(hot, place, 0)

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return the row from its tier."""
        number = code.below(number, self.rows)
        hot, place = self._find(code, at, number)
        kept = [code.variable(floats(width), "zeroinitializer") for _, width in columns]
        tiers = [(hot, "hot", place), (code.let(f"xor i1 {hot}, true"), "cold", number)]
        for chosen, name, row in tiers:
            with code.when(chosen):
                values = self.parts[name].read(code, f"{at}{name}_", row, columns)
                for value, variable, (_, width) in zip(values, kept, columns, strict=True):
                    code.set(floats(width), value, variable)
        return [code.get(floats(width), variable) for variable, (_, width) in zip(kept, columns, strict=True)]

    def prefetch(self, code: Assembly, at: str, upcoming: Upcoming) -> None:
        """Ask for the bits first, for both rows later."""
        word = code.let(f"lshr i64 {upcoming(self.depth)}, 6")
        for name, kind, size in (("words", "i64", 8), ("counts", "i32", 4)):
            code.prefetch(code.place(code.let(f"inttoptr i64 %{at}{name} to ptr"), word, kind), size, aligned=True)

        def hot(strides: int) -> str:
            number = upcoming(strides)
            inside = code.compare("ult", number, self.rows)
            return self._find(code, at, code.choose(inside, number, 0))[1]

        self.parts["cold"].prefetch(code, f"{at}cold_", upcoming)
        self.parts["hot"].prefetch(code, f"{at}hot_", hot)


class Bitmap(Node):
    """Rows with a bit for every value; kept values float32 follow one another."""

    def __init__(self, values: Tensor, words: Tensor, ranks: Tensor, rows: int, dim: int) -> None:
        super().__init__({"values": values, "words": words, "ranks": ranks}, {}, (rows, dim))
        self.rows, self.dim = rows, dim

    def sized(self) -> bool:
        """Tell whether each value has its bit."""
        return have_bits(self.own["words"], self.own["ranks"], self.rows * self.dim)

    def blocks(self, dim: int) -> list[list[Columns]]:
        """Return vectors of 16."""
        return lanes_of(dim)

    def accepts(self, columns: list[Columns]) -> bool:
        """Tell whether the vectors are those of one load each, in a run of 64 columns."""
        end = columns[-1][0] + columns[-1][1]
        return columns[0][0] % 64 == 0 and end <= self.dim and columns in lanes_of(end)

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return the row's values at their places."""
        first, count = columns[0][0], sum(width for _, width in columns)
        position = code.add(code.multiply(code.below(number, self.rows), self.dim), first)
        word, bit, start = ranked(code, at, ("words", "ranks"), position)
        following = code.add(code.let(f"lshr i64 {position}, 6"), 1)
        known = code.compare("ult", following, f"%{at}wordsn")
        after = code.number(f"%{at}words", code.choose(known, following, 0))
        mask = code.call("i64", "llvm.fshr.i64", ["i64", "i64", "i64"], [after, word, bit])
        if count < 64:
            mask = code.let(f"and i64 {mask}, {2**count - 1}")
        start, mask = inside(code, start, mask, f"%{at}valuesn")
        return spread_out(code, code.let(f"inttoptr i64 %{at}values to ptr"), start, mask, columns)

    @property
    def depth(self) -> int:  # type: ignore[override]
        """Bits, then values."""
        return 2

    def prefetch(self, code: Assembly, at: str, upcoming: Upcoming) -> None:
        """Ask for the bits first, for the values later."""
        word = code.let(f"lshr i64 {code.multiply(upcoming(2), self.dim)}, 6")
        code.prefetch(code.place(code.let(f"inttoptr i64 %{at}words to ptr"), word, "i64"), -(-self.dim // 8))
        code.prefetch(code.place(code.let(f"inttoptr i64 %{at}ranks to ptr"), word, "i32"), 4, aligned=True)
        number = upcoming(1)
        number = code.choose(code.compare("ult", number, self.rows), number, 0)
        start = ranked(code, at, ("words", "ranks"), code.multiply(number, self.dim))[2]
        code.prefetch(code.place(code.let(f"inttoptr i64 %{at}values to ptr"), start, "float"), 64)


def held(code: Assembly, start: str, count: str, limit: str) -> str:
    """Return an i1: whether `count` elements from `start` on lie below `limit`, without a sum that could wrap."""
    room = code.let(f"sub i64 {limit}, {start}")
    return code.let(f"and i1 {code.compare('ule', start, limit)}, {code.compare('ule', count, room)}")


def inside(code: Assembly, start: str, mask: str, count: str) -> tuple[str, str]:
    """Return start and mask if as many values as set bits lie between start and `count`; else note it and read none."""
    right = held(code, start, ones(code, mask), count)
    code.require(right)
    return code.choose(right, start, 0), code.choose(right, mask, 0)


class Narrow(Node):
    """Kept rows of the width of their block, zeros after it; a bit a row says which are kept."""

    def __init__(
        self,
        values: Tensor,
        words: Tensor,
        ranks: Tensor,
        rows: int,
        starts: tuple[int, ...],
        widths: tuple[int, ...],
        kept: tuple[int, ...],
    ) -> None:
        super().__init__({"values": values, "words": words, "ranks": ranks}, {}, (rows, starts, widths, kept))
        self.rows, self.starts, self.widths, self.ranks = rows, starts, widths, firsts(kept)
        self.begins = firsts(tuple(width * count for width, count in zip(widths, kept, strict=True)))

    def sized(self) -> bool:
        """Tell whether each row has its bit and each block its width."""
        blocks = len(self.starts) == len(self.widths)
        return blocks and have_bits(self.own["words"], self.own["ranks"], self.rows)

    @property
    def depth(self) -> int:  # type: ignore[override]
        """Bits, then values."""
        return 2

    def _place(self, code: Assembly, at: str, number: str) -> tuple[str, str]:
        """Return where the values of a row start and how many they are (0: the row is gone)."""
        word, bit, rank = ranked(code, at, ("words", "ranks"), number)
        member = code.let(f"trunc i64 {code.let(f'lshr i64 {word}, {bit}')} to i1")
        block, _ = block_of(code, number, self.starts)
        width, first = code.entry(self.widths, block), code.entry(self.ranks, block)
        own = code.multiply(code.let(f"sub i64 {rank}, {first}"), width)
        return code.add(own, code.entry(self.begins, block)), code.choose(member, width, 0)

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return the row's columns."""
        start, count = self._place(code, at, code.below(number, self.rows))
        right = held(code, start, count, f"%{at}valuesn")
        gone = code.compare("eq", count, 0)
        code.require(code.let(f"or i1 {right}, {gone}"))
        short = code.let(f"trunc i64 {code.choose(right, count, 0)} to i16")
        place = code.place(code.let(f"inttoptr i64 %{at}values to ptr"), code.choose(right, start, 0), "float")
        found = []
        for first, width in columns:
            kind = f"<{width} x i16>"
            limit = spread(code, short, width, "i16")
            mask = code.let(f"icmp slt {kind} {constant('i16', range(first, first + width))}, {limit}")
            kinds = ["ptr", "i32", f"<{width} x i1>", floats(width)]
            given = [code.place(place, str(first), "float"), "4", mask, "zeroinitializer"]
            found.append(code.call(floats(width), f"llvm.masked.load.v{width}f32.p0", kinds, given))
        return found

    def prefetch(self, code: Assembly, at: str, upcoming: Upcoming) -> None:
        """Ask for the bits first, for the values later."""
        word = code.let(f"lshr i64 {upcoming(2)}, 6")
        code.prefetch(code.place(code.let(f"inttoptr i64 %{at}words to ptr"), word, "i64"), 8, aligned=True)
        code.prefetch(code.place(code.let(f"inttoptr i64 %{at}ranks to ptr"), word, "i32"), 4, aligned=True)
        number = upcoming(1)
        start, _ = self._place(code, at, code.choose(code.compare("ult", number, self.rows), number, 0))
        code.prefetch(code.place(code.let(f"inttoptr i64 %{at}values to ptr"), start, "float"), 4 * max(self.widths))
