"""Sources whose rows are found by arithmetic on the id: hashes, chunks of one memory, quotients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored.hashing import PRIME
from lessen.stored.kernels.assembly import Assembly, block_of, firsts, floats, multiply_add, same, spread
from lessen.stored.kernels.located import Computed, Located, Place
from lessen.stored.kernels.sources import Columns, Node, Source, Upcoming, is_of


def residue(code: Assembly, number: str) -> str:
    """Return an id modulo the prime (see `stored.hashing`)."""
    parts = [code.let(f"and i64 {number}, {PRIME}")]
    for shift, mask in ((31, PRIME), (62, 3)):
        high = code.let(f"ashr i64 {number}, {shift}")
        parts.append(code.let(f"and i64 {high}, {mask}"))
    return _fold(code, code.add(code.add(parts[0], parts[1]), parts[2]))


def _fold(code: Assembly, value: str) -> str:
    return code.add(code.let(f"and i64 {value}, {PRIME}"), code.let(f"ashr i64 {value}, 31"))


def mixed(code: Assembly, number: str, a: str, b: str) -> str:
    """Return (a x + b) modulo the prime."""
    folded = _fold(code, _fold(code, code.add(code.multiply(number, a), b)))
    return code.choose(code.compare("slt", folded, PRIME), folded, PRIME)


def into(code: Assembly, value: str, size: str | int) -> str:
    """Map a hash onto [0, size)."""
    return code.let(f"ashr i64 {code.multiply(value, size)}, 31")


def remainder(code: Assembly, number: str, size: str | int) -> str:
    """Return the remainder that is never negative."""
    left = code.let(f"srem i64 {number}, {size}")
    return code.choose(code.compare("slt", left, 0), code.add(left, size), left)


class Hashed(Located):
    """Mean of k (signed) rows of one table: `constants` int64 [blocks, k, 4] (a, b, sign a, b), a = 0: remainder."""

    def __init__(
        self, constants: Tensor, table: Source, starts: tuple[int, ...], sizes: tuple[int, ...], signed: bool
    ) -> None:
        hashes = constants.shape[1]
        super().__init__({"constants": constants}, {"rows": table}, (starts, sizes, hashes, signed))
        self.starts, self.sizes, self.hashes, self.signed = starts, sizes, hashes, signed
        self.firsts = firsts(sizes)

    def sized(self) -> bool:
        """Tell whether each block has its constants."""
        return is_of(self.own["constants"], torch.int64, (len(self.starts), self.hashes, 4))

    @property
    def bytes_read(self) -> int:
        """Bytes of all rows."""
        return self.hashes * super().bytes_read

    @property
    def numbers(self) -> int:
        """A row for each hash, and a sign."""
        return self.hashes * (1 + self.signed)

    def locate(self, code: Assembly, at: str, number: str) -> list[str]:
        """Return the row of each hash and, of signed ones, the number whose lowest bit is its sign."""
        block, own = block_of(code, number, self.starts)
        size, first = code.entry(self.sizes, block), code.entry(self.firsts, block)
        mixable, found = residue(code, own), []
        for hash_number in range(self.hashes):
            place = code.add(code.multiply(block, 4 * self.hashes), 4 * hash_number)
            a, b, c, d = (code.number(f"%{at}constants", code.add(place, offset)) for offset in range(4))
            kept = code.variable("i64", "0")
            with code.when(code.compare("ne", a, 0)):
                code.set("i64", into(code, mixed(code, mixable, a, b), size), kept)
            with code.when(code.compare("eq", a, 0)):
                code.set("i64", remainder(code, own, size), kept)
            found.append(code.add(code.get("i64", kept), first))
            if self.signed:
                found.append(mixed(code, mixable, c, d))
        return found

    def read_at(self, code: Assembly, at: str, places: list[str], columns: list[Columns]) -> list[str]:
        """Return the mean of the rows."""
        total: list[str] = []
        step = 1 + self.signed
        for place in range(0, len(places), step):
            values = self.parts["rows"].read(code, f"{at}rows_", places[place], columns)
            if self.signed:
                odd = code.let(f"trunc i64 {places[place + 1]} to i1")
                values = [
                    code.choose(odd, code.let(f"fneg {floats(width)} {value}"), value, floats(width))
                    for value, (_, width) in zip(values, columns, strict=True)
                ]
            total = added(code, total, values, columns) if total else values
        if self.hashes == 1:
            return total
        return [
            code.let(f"fdiv {floats(width)} {value}, {same(width, 'float', float(self.hashes))}")
            for value, (_, width) in zip(total, columns, strict=True)
        ]

    def prefetch_at(self, code: Assembly, at: str, places: list[str]) -> None:
        """Ask for every row."""
        for row in places[:: 1 + self.signed]:
            self.parts["rows"].prefetch(code, f"{at}rows_", lambda _, row=row: row)  # type: ignore[misc]


def added(code: Assembly, left: list[str], right: list[str], columns: list[Columns], how: str = "fadd") -> list[str]:
    """Return the sums (or another operation) of two lists of vectors."""
    return [
        code.let(f"{how} {floats(width)} {one}, {other}")
        for one, other, (_, width) in zip(left, right, columns, strict=True)
    ]


class Unified(Computed):
    """Chunks from rows of one memory; `salts` int64 [blocks, chunks, 2]."""

    def __init__(self, salts: Tensor, memory: Source, rows: int, dim: int, fields: int) -> None:
        super().__init__({"salts": salts}, {"memory": memory}, (salts.shape, rows, dim))
        self.chunks, self.rows, self.width = salts.shape[1], rows, dim // salts.shape[1]
        self.fields = fields

    def sized(self) -> bool:
        """Tell whether each field has its salts."""
        return is_of(self.own["salts"], torch.int64, (self.fields, self.chunks, 2))

    def blocks(self, dim: int) -> list[list[Columns]]:
        """Return the vectors of each chunk."""
        return chunked(dim, self.width, self.parts["memory"].blocks(self.width))

    def accepts(self, columns: list[Columns]) -> bool:
        """Tell whether no vector reaches beyond its chunk, and the memory can give it."""
        inner = [(first % self.width, count) for first, count in columns]
        inside = all(first + count <= self.width for first, count in inner)
        inside = inside and all(first // self.width < self.chunks for first, _ in columns)
        return inside and all(self.parts["memory"].accepts([one]) for one in inner)

    @property
    def numbers(self) -> int:
        """A row for each chunk."""
        return self.chunks

    def locate(self, code: Assembly, at: str, place: Place) -> list[str]:
        """Return the row of each chunk."""
        number, first = residue(code, place[1]), code.multiply(place[0], 2 * self.chunks)
        rows = []
        for chunk in range(self.chunks):
            a, b = (code.number(f"%{at}salts", code.add(first, 2 * chunk + offset)) for offset in range(2))
            rows.append(into(code, mixed(code, number, a, b), self.rows))
        return rows

    def read_at(self, code: Assembly, at: str, places: list[str], columns: list[Columns]) -> list[str]:
        """Return the chunks side by side."""
        found = []
        for first, width in columns:
            row = places[first // self.width]
            found += self.parts["memory"].read(code, f"{at}memory_", row, [(first % self.width, width)])
        return found

    def prefetch_at(self, code: Assembly, at: str, places: list[str]) -> None:
        """Ask for the row of each chunk."""
        for row in places:
            self.parts["memory"].prefetch(code, f"{at}memory_", lambda _, row=row: row)  # type: ignore[misc]


def chunked(dim: int, chunk: int, inner: list[list[Columns]]) -> list[list[Columns]]:
    """Return the vectors of chunks side by side, each cut like `inner`, some 64 columns or 16 vectors a block."""
    single = [(start + first, count) for start in range(0, dim, chunk) for block in inner for first, count in block]
    together = max(1, min(16, 64 * len(single) // dim))
    return [single[number : number + together] for number in range(0, len(single), together)]


class BlockHashed(Computed):
    """Chunks cut from one flat array `memory` at hashed places; `constants` int64 [3] (a, b, s)."""

    def __init__(self, memory: Tensor, constants: Tensor, chunk: int, dim: int) -> None:
        super().__init__({"memory": memory, "constants": constants}, {}, (chunk, dim))
        self.chunk, self.dim = chunk, dim

    def sized(self) -> bool:
        """Tell whether there are three constants, and a chunk in the memory."""
        memory = self.own["memory"]
        return is_of(self.own["constants"], torch.int64, (3,)) and memory.dim() == 1 and len(memory) >= self.chunk

    def blocks(self, dim: int) -> list[list[Columns]]:
        """Return the vectors of each chunk."""
        return chunked(dim, self.chunk, [[(first, min(64, self.chunk - first)) for first in range(0, self.chunk, 64)]])

    def accepts(self, columns: list[Columns]) -> bool:
        """Tell whether no vector reaches beyond its chunk, or beyond the last."""
        return all(first % self.chunk + count <= self.chunk and first + count <= self.dim for first, count in columns)

    @property
    def numbers(self) -> int:
        """A start for each chunk."""
        return self.dim // self.chunk

    def locate(self, code: Assembly, at: str, place: Place) -> list[str]:
        """Return the place in `memory` at which each chunk starts."""
        a, b, s = (code.number(f"%{at}constants", str(number)) for number in range(3))
        number, starts = residue(code, place[2]), code.add(f"%{at}memoryn", 1 - self.chunk)
        found = []
        for chunk in range(self.numbers):
            shift = remainder(code, code.add(code.multiply(b, chunk), s), PRIME)
            found.append(into(code, mixed(code, number, a, shift), starts))
        return found

    def _address(self, code: Assembly, at: str, start: str) -> str:
        return code.place(code.let(f"inttoptr i64 %{at}memory to ptr"), start, "float")

    def read_at(self, code: Assembly, at: str, places: list[str], columns: list[Columns]) -> list[str]:
        """Return the chunks side by side."""
        starts, found = code.add(f"%{at}memoryn", 1 - self.chunk), []
        for first, width in columns:
            start = self._address(code, at, code.below(places[first // self.chunk], starts))
            found.append(code.get(floats(width), code.place(start, str(first % self.chunk), "float")))
        return found

    def prefetch_at(self, code: Assembly, at: str, places: list[str]) -> None:
        """Ask for each chunk."""
        for start in places:
            code.prefetch(self._address(code, at, start), 4 * self.chunk)


class WeightedHash(Computed):
    """Sums of k weighted rows; `constants` int64 [large blocks, k + 1, 2], the last hash picks a row of weights."""

    def __init__(
        self,
        constants: Tensor,
        table: Source,
        weights: Tensor,
        order: tuple[int, ...],
        rows: tuple[int, ...],
        slots: tuple[int, ...],
        ids: tuple[int, ...],
    ) -> None:
        given = (constants.shape, order, rows, slots, ids)
        super().__init__({"constants": constants, "weights": weights}, {"table": table}, given)
        self.hashes, self.order, self.rows, self.slots, self.ids = constants.shape[1] - 1, order, rows, slots, ids

    def sized(self) -> bool:
        """Tell whether each large block has its constants, and each slot a weight a hash."""
        weights = self.own["weights"]
        right = is_of(self.own["constants"], torch.int64, (len(self.rows), self.hashes + 1, 2))
        return right and weights.dim() == 2 and weights.shape[1] == self.hashes

    @property
    def bytes_read(self) -> int:
        """Bytes of all rows."""
        return self.hashes * super().bytes_read

    @property
    def numbers(self) -> int:
        """A row for each hash, and the slot of the weights."""
        return self.hashes + 1

    def locate(self, code: Assembly, at: str, place: Place) -> list[str]:
        """Return the rows and the slot of an id."""
        order = code.entry(self.order, place[0])
        rows, slots, ids = (code.entry(sizes, order) for sizes in (self.rows, self.slots, self.ids))
        first, slot_first = (code.entry(firsts(sizes), order) for sizes in (self.rows, self.slots))
        number, start = residue(code, place[1]), code.multiply(order, 2 * (self.hashes + 1))
        hashed = []
        for hash_number in range(self.hashes + 1):
            a, b = (code.number(f"%{at}constants", code.add(start, 2 * hash_number + offset)) for offset in range(2))
            hashed.append(mixed(code, number, a, b))
        last = code.add(slots, -1)
        own = code.choose(code.compare("slt", place[1], last), place[1], last)
        slot = code.choose(code.compare("eq", slots, ids), own, into(code, hashed[-1], slots))
        return [*(code.add(into(code, value, rows), first) for value in hashed[:-1]), code.add(slot, slot_first)]

    def read_at(self, code: Assembly, at: str, places: list[str], columns: list[Columns]) -> list[str]:
        """Return the weighted sums."""
        *rows, slot = places
        count = code.let(f"sdiv i64 %{at}weightsn, {self.hashes}")
        base = code.multiply(code.below(slot, count), self.hashes)
        total = ["zeroinitializer"] * len(columns)
        for number, row in enumerate(rows):
            start = code.let(f"inttoptr i64 %{at}weights to ptr")
            weight = code.get("float", code.place(start, code.add(base, number), "float"))
            values = self.parts["table"].read(code, f"{at}table_", row, columns)
            total = [
                multiply_add(code, width, spread(code, weight, width), value, before)
                for value, before, (_, width) in zip(values, total, columns, strict=True)
            ]
        return total

    def prefetch_at(self, code: Assembly, at: str, places: list[str]) -> None:
        """Ask for every row and for the weights."""
        *rows, slot = places
        start = code.let(f"inttoptr i64 %{at}weights to ptr")
        code.prefetch(code.place(start, code.multiply(slot, self.hashes), "float"), 4 * self.hashes)
        for row in rows:
            self.parts["table"].prefetch(code, f"{at}table_", lambda _, row=row: row)  # type: ignore[misc]


class QuotientRemainder(Node):
    """Product or sum of a quotient row and a remainder row."""

    def __init__(
        self,
        quotient: Source,
        left: Source,
        rows: int,
        starts: tuple[int, ...],
        shared: tuple[int, ...],
        quotients: tuple[int, ...],
        multiply: bool,
    ) -> None:
        super().__init__({}, {"quotient": quotient, "left": left}, (rows, starts, shared, quotients, multiply))
        self.rows, self.starts, self.shared, self.quotients = rows, starts, shared, quotients
        self.how = "fmul" if multiply else "fadd"

    def sized(self) -> bool:
        """Tell whether each block says how it is shared; rows are checked as they are read."""
        return len(self.starts) == len(self.shared) == len(self.quotients)

    def _places(self, code: Assembly, number: str) -> dict[str, str]:
        """Return the row in both tables of an id that lies in the table."""
        block, own = block_of(code, number, self.starts)
        divisor = code.entry(self.shared, block)
        found: dict[str, Any] = {"quotient": (f"sdiv i64 {own}, {divisor}", self.quotients)}
        found["left"] = (f"srem i64 {own}, {divisor}", self.shared)
        return {
            name: code.add(code.let(text), code.entry(firsts(sizes), block)) for name, (text, sizes) in found.items()
        }

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return the composed row."""
        places = self._places(code, code.below(number, self.rows))
        rows = [self.parts[name].read(code, f"{at}{name}_", place, columns) for name, place in places.items()]
        return added(code, rows[0], rows[1], columns, self.how)

    def prefetch(self, code: Assembly, at: str, upcoming: Upcoming) -> None:
        """Ask for both rows."""
        for name, place in self._places(code, upcoming(1)).items():
            self.parts[name].prefetch(code, f"{at}{name}_", lambda _, place=place: place)  # type: ignore[misc]
