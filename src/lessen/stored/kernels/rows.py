"""Sources that hold rows in one tensor: plain numbers, packed codes, codes on steps of a field, codes of centroids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lessen.stored.kernels.assembly import Assembly, block_of, constant, floats, multiply_add, same, spread
from lessen.stored.kernels.sources import WIDEST, Columns, Source, Upcoming


@dataclass(frozen=True, eq=False)
class Rows(Source):
    """Rows of bytes, one after the other: the base of what lies in one two-dimensional tensor [rows, *]."""

    table: Tensor

    def tensors(self) -> list[Tensor]:
        """Return the table."""
        return [self.table]

    def values(self, at: str) -> dict[str, int]:
        """Return the table's address and rows."""
        return {f"{at}table": self.table.data_ptr(), f"{at}rows": len(self.table)}

    @property
    def bytes_read(self) -> int:
        """Bytes of a row."""
        return self.stride

    @property
    def stride(self) -> int:
        """Bytes from one row to the next."""
        return self.table.shape[1] * self.table.element_size()

    def key(self) -> tuple[Any, ...]:
        """Return the kind, the element type and the width."""
        return (type(self).__name__, self.table.dtype, self.table.shape[1])

    @property
    def columns(self) -> int:
        """Columns that a row holds."""
        raise NotImplementedError

    def sized(self) -> bool:
        """Tell whether the table has rows."""
        return self.table.dim() == 2

    def accepts(self, columns: list[Columns]) -> bool:
        """Tell whether a row holds these columns."""
        return all(first >= 0 and first + count <= self.columns for first, count in columns)

    def start(self, code: Assembly, at: str, number: str) -> str:
        """Return the address of a row; the number is checked."""
        row = code.below(number, f"%{at}rows")
        return code.place(code.let(f"inttoptr i64 %{at}table to ptr"), code.multiply(row, self.stride))

    def prefetch(self, code: Assembly, at: str, upcoming: Upcoming) -> None:
        """Ask for the lines of the row."""
        base = code.let(f"inttoptr i64 %{at}table to ptr")
        place = code.place(base, code.multiply(upcoming(1), self.stride))
        code.prefetch(place, self.stride, aligned=self.stride % 64 == 0)


class Floats(Rows):
    """Rows of float32, float16 or bfloat16."""

    @property
    def columns(self) -> int:
        """One value a column."""
        return self.table.shape[1]

    def sound(self) -> bool:
        """Tell whether the rows are of one of these types."""
        return self.table.dtype in (torch.float32, torch.float16, torch.bfloat16) and self.sized()

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return the row's columns, widened."""
        start, size = self.start(code, at, number), self.table.element_size()
        name = str(self.table.dtype).removeprefix("torch.")
        found = []
        for first, width in columns:
            place = code.place(start, str(first * size))
            if name == "float32":
                found.append(code.get(floats(width), place))
            elif name == "float16":
                found.append(
                    code.let(f"fpext <{width} x half> {code.get(f'<{width} x half>', place)} to {floats(width)}")
                )
            else:
                whole = f"<{width} x i32>"
                raw = code.let(f"zext <{width} x i16> {code.get(f'<{width} x i16>', place)} to {whole}")
                high = code.let(f"shl {whole} {raw}, {same(width, 'i32', 16)}")
                found.append(code.let(f"bitcast {whole} {high} to {floats(width)}"))
        return found


@dataclass(frozen=True, eq=False)
class Codes(Rows):
    """Rows of 8, 4 or 2 bit codes, then scale and bias of the row: float32 each at 8 bits, float16 below."""

    bits: int

    def key(self) -> tuple[Any, ...]:
        """Return the layout."""
        return (*super().key(), self.bits)

    @property
    def columns(self) -> int:
        """The codes before the parameters of the row."""
        return (self.stride - (8 if self.bits == 8 else 4)) * 8 // self.bits

    def sized(self) -> bool:
        """Tell whether rows are bytes."""
        return super().sized() and self.table.dtype == torch.uint8

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return code * scale + bias."""
        start = self.start(code, at, number)
        size, kind = (4, "float") if self.bits == 8 else (2, "half")
        pair = []
        for offset in (2 * size, size):
            value = code.get(kind, code.place(start, str(self.stride - offset)))
            pair.append(value if kind == "float" else code.let(f"fpext half {value} to float"))
        found = []
        for first, width in columns:
            levels = unpacked(code, start, first, width, self.bits)
            scale, bias = (spread(code, value, width) for value in pair)
            found.append(multiply_add(code, width, levels, scale, bias))
        return found


def unpacked(code: Assembly, start: str, first: int, width: int, bits: int) -> str:
    """Return codes `first` to `first + width` of a row as float32; the first of a byte is in its low bits."""
    skipped = first * bits % 8 // bits
    count = -(-(skipped + width) * bits // 8)
    raw = code.get(f"<{count} x i8>", code.place(start, str(first * bits // 8)))
    for half in (4, 2):
        if bits <= half:
            kind = f"<{count} x i8>"
            low = code.let(f"and {kind} {raw}, {same(count, 'i8', 2**half - 1)}")
            high = code.let(f"lshr {kind} {raw}, {same(count, 'i8', half)}")
            order = constant(
                "i32", [place for pair in zip(range(count), range(count, 2 * count), strict=True) for place in pair]
            )
            raw = code.let(f"shufflevector {kind} {low}, {kind} {high}, <{2 * count} x i32> {order}")
            count *= 2
    if count > width:
        order = constant("i32", range(skipped, skipped + width))
        raw = code.let(f"shufflevector <{count} x i8> {raw}, <{count} x i8> poison, <{width} x i32> {order}")
    whole = code.let(f"zext <{width} x i8> {raw} to <{width} x i32>")
    return code.let(f"sitofp <{width} x i32> {whole} to {floats(width)}")


@dataclass(frozen=True, eq=False)
class Stepped(Rows):
    """Rows of 8, 4 or 2 bit codes without parameters; `steps` float32 [fields], `starts` the fields' first ids."""

    steps: Tensor
    starts: tuple[int, ...]
    bits: int

    def tensors(self) -> list[Tensor]:
        """Return codes and steps."""
        return [self.table, self.steps]

    def values(self, at: str) -> dict[str, int]:
        """Return the steps' address too."""
        return {**super().values(at), f"{at}steps": self.steps.data_ptr()}

    def key(self) -> tuple[Any, ...]:
        """Return the layout."""
        return (*super().key(), self.starts, self.bits)

    @property
    def columns(self) -> int:
        """The codes of a row."""
        return self.stride * 8 // self.bits

    def sized(self) -> bool:
        """Tell whether codes are bytes and each field has its step."""
        return super().sized() and self.table.dtype == torch.uint8 and self.steps.shape == (len(self.starts),)

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return (code - half) * step of the field."""
        start = self.start(code, at, number)
        block, _ = block_of(code, number, self.starts)
        step = code.get("float", code.place(code.let(f"inttoptr i64 %{at}steps to ptr"), block, "float"))
        found = []
        for first, width in columns:
            levels = unpacked(code, start, first, width, self.bits)
            middle = same(width, "float", float(2 ** (self.bits - 1)))
            levels = code.let(f"fsub {floats(width)} {levels}, {middle}")
            found.append(code.let(f"fmul {floats(width)} {levels}, {spread(code, step, width)}"))
        return found


@dataclass(frozen=True, eq=False)
class Product(Rows):
    """Rows of short codes; group m of the columns is centroid `code m` of its own codebook.

    `codebook` float32 [groups * centroids, width].
    """

    codebook: Tensor
    groups: int
    bits: int

    def tensors(self) -> list[Tensor]:
        """Return codes and codebooks."""
        return [self.table, self.codebook]

    def values(self, at: str) -> dict[str, int]:
        """Return the codebooks' address too."""
        return {**super().values(at), f"{at}codebook": self.codebook.data_ptr()}

    def key(self) -> tuple[Any, ...]:
        """Return the layout."""
        return (*super().key(), self.codebook.shape, self.groups, self.bits)

    @property
    def columns(self) -> int:
        """The columns of all groups."""
        return self.groups * self.codebook.shape[1]

    def sized(self) -> bool:
        """Tell whether codes are bytes, rows hold a code a group, and each group has as many centroids."""
        if not super().sized() or self.table.dtype != torch.uint8 or self.codebook.dim() != 2:
            return False
        return self.stride * 8 >= self.groups * self.bits and len(self.codebook) % self.groups == 0

    def blocks(self, dim: int) -> list[list[Columns]]:
        """Return a vector for each group, as many at a time as registers hold."""
        width = self.codebook.shape[1]
        columns = [(first, min(width, dim - first)) for first in range(0, dim, width)]
        together = max(1, min(16, WIDEST * 2 // width))
        return [columns[number : number + together] for number in range(0, len(columns), together)]

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return the centroids side by side; a vector may begin and end anywhere."""
        start = self.start(code, at, number)
        return [self._cut(code, at, start, first, count) for first, count in columns]

    def _cut(self, code: Assembly, at: str, start: str, first: int, count: int) -> str:
        """Return `count` columns from `first` on, put together where they are of several groups."""
        width, stop = self.codebook.shape[1], first + count
        if first // width == (stop - 1) // width:
            return code.get(floats(count), self._centroid(code, at, start, first))
        whole = code.variable(floats(count), "zeroinitializer")
        while first < stop:
            part = min(width - first % width, stop - first)
            values = code.get(floats(part), self._centroid(code, at, start, first))
            code.set(floats(part), values, code.place(whole, str(first - stop + count), "float"))
            first += part
        return code.get(floats(count), whole)

    def _centroid(self, code: Assembly, at: str, start: str, column: int) -> str:
        """Return the address of the value that the row at `start` has in a column."""
        book = code.let(f"inttoptr i64 %{at}codebook to ptr")
        width, centroids = self.codebook.shape[1], len(self.codebook) // self.groups
        group = column // width
        chosen = self._code(code, start, group)
        if centroids < 2**self.bits:
            chosen = code.below(chosen, centroids)
        place = code.add(code.multiply(code.add(chosen, group * centroids), width), column % width)
        return code.place(book, place, "float")

    def _code(self, code: Assembly, start: str, group: int) -> str:
        """Return the code of a group, i64."""
        byte = code.wide(code.get("i8", code.place(start, str(group * self.bits // 8))), "i8")
        if self.bits == 8:
            return byte
        return code.let(f"lshr i64 {byte}, 4") if group % 2 else code.let(f"and i64 {byte}, 15")
