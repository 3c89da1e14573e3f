"""Writes attention to blocks of codes: no state is decoded to memory, codes are widened as they meet the arithmetic.

keys      q . (scale * code + minimum) over channels  =  (q * scale) . code + q . minimum      q * scale once a block
values    sum of weight * (scale * code + minimum) over tokens, where scales are of a token: weight * scale first

so that a code costs its widening, shared by the query heads of a key head, and one multiply-add for each of them.
"""

from __future__ import annotations

from lessen.decoding.compiled.floats import KIND, LANES, total
from lessen.decoding.compiled.layout import CHUNK, Codes, Heads
from lessen.stored.kernels.assembly import Assembly, floats, multiply_add, same, spread

_SUMS = {8: 12, 16: 18}
"""Vectors of sums that registers hold, by lanes."""
_UNROLLED = 4
"""Channels, or tokens, of a turn."""


class CodedBlocks:
    """Lines about the blocks of one key head in one layer, for all its query heads.

    Args:
        place: address of the head's records.
        queries: address of float32 [heads, width], side by side.
        scores: of float32 [heads, CHUNK], which `scores` fills and whose weights `add` reads.
        sums: of float32 [heads, width], to which `add` adds.
    """

    def __init__(self, code: Assembly, heads: Heads, codes: Codes, place: str, queries: str, scores: str, sums: str):
        self.code, self.heads, self.codes, self.place = code, heads, codes, place
        self.queries, self.scores_at, self.sums = queries, scores, sums
        self.folded = code.room("float", heads.group * codes.width)
        self.weights = code.room("float", heads.group * codes.runs * codes.group)
        self.kind = floats(codes.lanes)

    def record(self, number: str) -> str:
        """Return the address of a block."""
        return self.code.place(self.place, self.code.multiply(number, self.codes.bytes))

    # keys

    def scores(self, record: str, first: str) -> None:
        """Write the products of the queries with the keys of a block to the scores from number `first` on."""
        starts = [self._fold(record, head) for head in range(self.heads.group)]
        codes = self.codes
        parts = codes.group // codes.fields // codes.lanes
        together = max(1, _SUMS[codes.lanes] // (codes.fields * parts))
        for low in range(0, self.heads.group, together):
            heads = range(low, min(low + together, self.heads.group))
            self._products(record, first, {head: starts[head] for head in heads}, parts)

    def _fold(self, record: str, head: int) -> str:
        """Write q * scale of every channel; return q . minimum."""
        code, width = self.code, self.codes.width
        scales, minimums = (code.place(record, str(self.codes.offsets[table])) for table in (1, 2))
        least = "zeroinitializer"
        for part in range(0, width, LANES):
            query = code.get(KIND, code.place(self.queries, str(head * width + part), "float"))
            scale = self._half(scales, str(part))
            code.set(
                KIND,
                code.let(f"fmul {KIND} {query}, {scale}"),
                code.place(self.folded, str(head * width + part), "float"),
            )
            least = multiply_add(code, LANES, query, self._half(minimums, str(part)), least)
        return total(code, least)

    def _products(self, record: str, first: str, starts: dict[int, str], parts: int) -> None:
        code, codes = self.code, self.codes
        row = codes.group // codes.fields
        sums = {}
        for head, start in starts.items():
            for number in range(codes.fields * parts):
                sums[head, number] = code.variable(self.kind, "zeroinitializer")
                code.set(self.kind, spread(code, start, codes.lanes), sums[head, number])
        with code.loop("0", str(codes.width // _UNROLLED)) as turn:
            for step in range(_UNROLLED):
                channel = code.add(code.multiply(turn, _UNROLLED), step)
                held = self._widened(code.place(record, code.multiply(channel, row)), range(parts))
                for head in starts:
                    place = code.place(self.folded, code.add(channel, head * codes.width), "float")
                    query = spread(code, code.get("float", place), codes.lanes)
                    for number, levels in enumerate(held):
                        self._more(sums[head, number], query, levels)
        for (head, number), value in sums.items():
            at = code.add(first, head * CHUNK + self._neighbour(number, parts, row))
            code.set(self.kind, code.get(self.kind, value), code.place(self.scores_at, at, "float"))

    # values

    def rescale(self, factors: str) -> None:
        """Multiply the sums by the factor of each head."""
        code, width = self.code, self.codes.width
        for head in range(self.heads.group):
            factor = spread(code, code.get("float", code.place(factors, str(head), "float")), LANES)
            for part in range(head * width, (head + 1) * width, LANES):
                place = code.place(self.sums, str(part), "float")
                code.set(KIND, code.let(f"fmul {KIND} {code.get(KIND, place)}, {factor}"), place)

    def add(self, record: str, first: str) -> None:
        """Add the values of a block to the sums, weighted by the scores from number `first` on."""
        starts = {
            (head, run): self._weigh(record, first, head, run)
            for head in range(self.heads.group)
            for run in range(self.codes.runs)
        }
        codes = self.codes
        parts = codes.width // codes.fields // codes.lanes
        columns = max(1, min(parts, _SUMS[codes.lanes] // (codes.fields * self.heads.group)))
        for left in range(0, parts, columns):
            self._sum(record, starts, range(left, min(left + columns, parts)), parts)

    def _weigh(self, record: str, first: str, head: int, run: int) -> str:
        """Write weight * scale of every token for a run of channels; return the sum of weight * minimum."""
        code, codes = self.code, self.codes
        scales, minimums = (code.place(record, str(codes.offsets[table] + 2 * run * codes.group)) for table in (4, 5))
        least, here = "zeroinitializer", (head * codes.runs + run) * codes.group
        for part in range(0, codes.group, LANES):
            weight = code.get(KIND, code.place(self.scores_at, code.add(first, head * CHUNK + part), "float"))
            scaled = code.let(f"fmul {KIND} {weight}, {self._half(scales, str(part))}")
            code.set(KIND, scaled, code.place(self.weights, str(here + part), "float"))
            least = multiply_add(code, LANES, weight, self._half(minimums, str(part)), least)
        return total(code, least)

    def _sum(self, record: str, starts: dict[tuple[int, int], str], columns: range, parts: int) -> None:
        code, codes = self.code, self.codes
        row = codes.width // codes.fields
        channels = [
            self._neighbour(field * parts + part, parts, row) for field in range(codes.fields) for part in columns
        ]
        sums = {}
        for head in range(self.heads.group):
            for number, channel in enumerate(channels):
                place = code.place(self.sums, str(head * codes.width + channel), "float")
                start = spread(code, starts[head, channel // codes.run], codes.lanes)
                value = code.let(f"fadd {self.kind} {code.get(self.kind, place)}, {start}")
                sums[head, number] = code.variable(self.kind, "zeroinitializer")
                code.set(self.kind, value, sums[head, number])
        values = code.place(record, str(codes.offsets[3]))
        with code.loop("0", str(codes.group // _UNROLLED)) as turn:
            for step in range(_UNROLLED):
                token = code.add(code.multiply(turn, _UNROLLED), step)
                held = self._widened(code.place(values, code.multiply(token, row)), columns)
                for head in range(self.heads.group):
                    weights: dict[int, str] = {}
                    for number, channel in enumerate(channels):
                        run = channel // codes.run
                        if run not in weights:
                            at = code.add(token, (head * codes.runs + run) * codes.group)
                            one = code.get("float", code.place(self.weights, at, "float"))
                            weights[run] = spread(code, one, codes.lanes)
                        self._more(sums[head, number], weights[run], held[number])
        for (head, number), value in sums.items():
            place = code.place(self.sums, str(head * codes.width + channels[number]), "float")
            code.set(self.kind, code.get(self.kind, value), place)

    # both

    def _neighbour(self, number: int, parts: int, row: int) -> int:
        """Return which code of a row the first of a widened vector is; `row` bytes, `parts` vectors a field."""
        return number // parts * row + number % parts * self.codes.lanes

    def _widened(self, place: str, parts: range) -> list[str]:
        """Return codes of some vectors of bytes at an address as float32: all parts of a field, then of the next."""
        code, lanes, bits = self.code, self.codes.lanes, self.codes.bits
        whole, found = f"<{lanes} x i32>", []
        raw = [
            code.let(
                f"zext <{lanes} x i8> {code.get(f'<{lanes} x i8>', code.place(place, str(part * lanes)))} to {whole}"
            )
            for part in parts
        ]
        for field in range(self.codes.fields):
            for one in raw:
                moved = code.let(f"lshr {whole} {one}, {same(lanes, 'i32', field * bits)}") if field else one
                if field < self.codes.fields - 1:
                    moved = code.let(f"and {whole} {moved}, {same(lanes, 'i32', (1 << bits) - 1)}")
                found.append(code.let(f"sitofp {whole} {moved} to {self.kind}"))
        return found

    def _more(self, place: str, left: str, right: str) -> None:
        code = self.code
        code.set(self.kind, multiply_add(code, self.codes.lanes, left, right, code.get(self.kind, place)), place)

    def _half(self, place: str, number: str) -> str:
        value = self.code.get(f"<{LANES} x half>", self.code.place(place, number, "half"))
        return self.code.let(f"fpext <{LANES} x half> {value} to {KIND}")
