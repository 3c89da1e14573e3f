"""Steps of attention: queries and keys rotated, keys and values written, and each row's softmax over its own cache.

Rows of one pass may belong to several sequences. `places` says of each row where it stands (`layout.PLACE`). A float
cache is float32 [layers, 2, key heads, room, width]; its room is a multiple of `CHUNK`. Blocks of codes, where there
are some, hold tokens of which a float cache knows nothing; a row sees all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from lessen.decoding.compiled.coded import CodedBlocks
from lessen.decoding.compiled.floats import KIND, LANES, exponential, exponential_of, largest, many, real, total
from lessen.decoding.compiled.layout import CHUNK, PLACE, Codes, Heads
from lessen.decoding.compiled.rows import normed
from lessen.stored.kernels.assembly import Assembly, multiply_add, spread
from lessen.stored.kernels.functions import Function, share

ROTATE = ("state", "places", "given", "apart", "layer", "cosines", "sines", "weight", "keyweight")
"""Rows `given` of `apart` float32: queries, keys, values. Tables of cosines and (signed) sines [places, width] float32.
Weights of the norms of queries and keys, or 0."""
ATTEND = ("state", "places", "given", "apart", "layer", "out")
"""Rows `out` hold heads * width float32."""
_TOGETHER = 4
"""Keys that are multiplied together."""
_ROWS = 8
"""Rows that take turns at a chunk, in passes of `_MANY` rows or more."""
_MANY = 64


@dataclass(frozen=True)
class _Place:
    """The place of a row while lines are written: numbers of `PLACE`, each an i64."""

    position: str
    index: str
    cache: str
    room: str
    codes: str
    blocks: str
    blockroom: str


def _place(code: Assembly, row: str) -> _Place:
    first = code.multiply(row, len(PLACE))
    parts = range(len(PLACE))
    return _Place(*(code.get("i64", code.place("%placesptr", code.add(first, part), "i64")) for part in parts))


def _held(code: Assembly, heads: Heads, place: _Place, which: int, head: str) -> str:
    """Return the address of the keys (0) or values (1) of a key head in this layer."""
    number = code.add(code.multiply(code.add(code.multiply("%layer", 2), which), heads.keys), head)
    cache = code.let(f"inttoptr i64 {place.cache} to ptr")
    return code.place(cache, code.multiply(code.multiply(number, place.room), heads.width), "float")


def rotate(heads: Heads) -> str:
    """Return the assembly that norms (if asked) and rotates queries in place, and writes keys and values to caches."""
    function = Function(ROTATE)
    code, width = function.code, heads.width
    each = heads.queries + 2 * heads.keys
    with code.loop(*share(function, function.state("rows"))) as row:
        place = _place(code, row)
        given = code.place("%givenptr", code.multiply(row, "%apart"), "float")
        table = code.multiply(place.position, width)
        cosines, sines = (code.place(f"%{name}ptr", table, "float") for name in ("cosines", "sines"))
        turns = (("0", heads.queries, "%weightptr"), (str(heads.queries), heads.keys, "%keyweightptr"))
        for first, count, weight in turns:
            with code.loop(first, str(int(first) + count)) as head:
                here = code.place(given, code.multiply(head, width), "float")
                if heads.epsilon is not None:
                    normed(code, here, here, str(width), heads.epsilon, weight)
                out = here
                if first != "0":
                    keys = _held(code, heads, place, 0, code.let(f"sub i64 {head}, {heads.queries}"))
                    out = code.place(keys, code.multiply(place.index, width), "float")
                _turn(code, here, out, cosines, sines, width)
        with code.loop(str(heads.queries + heads.keys), str(each)) as head:
            values = _held(code, heads, place, 1, code.let(f"sub i64 {head}, {heads.queries + heads.keys}"))
            out = code.place(values, code.multiply(place.index, width), "float")
            here = code.place(given, code.multiply(head, width), "float")
            for part in range(0, width, LANES):
                value = code.get(KIND, code.place(here, str(part), "float"))
                code.set(KIND, value, code.place(out, str(part), "float"))
    return function.text()


def _turn(code: Assembly, given: str, out: str, cosines: str, sines: str, width: int) -> None:
    """Rotate the halves of one head against each other; sines of the first half are signed."""
    half = width // 2
    for part in range(0, half, LANES):
        pair = [code.get(KIND, code.place(given, str(at), "float")) for at in (part, part + half)]
        for at, own, other in ((part, pair[0], pair[1]), (part + half, pair[1], pair[0])):
            cosine, sine = (code.get(KIND, code.place(table, str(at), "float")) for table in (cosines, sines))
            straight = code.let(f"fmul {KIND} {own}, {cosine}")
            code.set(KIND, multiply_add(code, LANES, other, sine, straight), code.place(out, str(at), "float"))


def attend(heads: Heads, codes: Codes | None = None, several: bool = False) -> str:
    """Return the assembly of attention: a key head and a row, or some of `several` rows, are a piece of work.

    A row's numbers do not depend on the rows beside it; `codes`: blocks may be there.
    """
    function = Function(ATTEND)
    code = function.code
    rows = function.state("rows")
    rooms = _Rooms(code, heads, _ROWS if several else 1)
    together = code.choose(code.compare("sge", rows, _MANY), str(_ROWS), 1) if several else "1"
    groups = code.let(f"sdiv i64 {code.add(rows, code.add(together, -1))}, {together}")
    with code.loop(*share(function, code.multiply(groups, heads.keys))) as number:
        head = code.let(f"sdiv i64 {number}, {groups}")
        first = code.multiply(code.let(f"srem i64 {number}, {groups}"), together)
        left = code.let(f"sub i64 {rows}, {first}")
        count = code.choose(code.compare("slt", left, together), left, together)
        _write(code, rooms, head, first, count, codes)
    return function.text()


class _Rooms:
    """What is held of the query heads of one key head in some rows: scores of a chunk, sums, and running numbers."""

    def __init__(self, code: Assembly, heads: Heads, rows: int) -> None:
        self.heads = heads
        self.scores = code.room("float", rows * heads.group * CHUNK)
        self.sums = code.room("float", rows * heads.group * heads.width)
        self.tops, self.parts, self.factors = (code.room("float", rows * heads.group) for _ in range(3))


def _write(code: Assembly, rooms: _Rooms, head: str, first: str, count: str, codes: Codes | None) -> None:
    """Write a piece of work: rows take turns at each chunk of keys, then of values, while it is near."""
    most = code.variable("i64", "0")
    code.set("i64", "0", most)
    with code.loop("0", count) as slot:
        one = _One(code, rooms, code.add(first, slot), head, slot)
        one.begin(codes)
        longest = code.get("i64", most)
        code.set("i64", code.choose(code.compare("sgt", one.chunks, longest), one.chunks, longest), most)
    with code.loop("0", code.get("i64", most)) as chunk:
        for part in ("weigh", "add"):
            with code.loop("0", count) as slot:
                one = _One(code, rooms, code.add(first, slot), head, slot)
                with code.when(code.compare("slt", chunk, one.chunks)):
                    getattr(one, part)(chunk)
    with code.loop("0", count) as slot:
        _One(code, rooms, code.add(first, slot), head, slot).finish()


class _One:
    """Writes attention of the query heads of one key head in one row, chunk after chunk with a running maximum."""

    def __init__(self, code: Assembly, rooms: _Rooms, row: str, head: str, slot: str) -> None:
        heads = rooms.heads
        self.code, self.heads, self.place, self.head = code, heads, _place(code, row), head
        first = code.multiply(head, heads.group * heads.width)
        self.queries = code.place("%givenptr", code.add(code.multiply(row, "%apart"), first), "float")
        width = heads.queries * heads.width
        self.out = code.place("%outptr", code.add(code.multiply(row, width), first), "float")
        self.keys, self.values = (_held(code, heads, self.place, which, head) for which in (0, 1))
        self.scores = code.place(rooms.scores, code.multiply(slot, heads.group * CHUNK), "float")
        self.sums = code.place(rooms.sums, code.multiply(slot, heads.group * heads.width), "float")
        here = code.multiply(slot, heads.group)
        self.tops, self.parts, self.factors = (
            code.place(room, here, "float") for room in (rooms.tops, rooms.parts, rooms.factors)
        )
        self.limit = code.add(self.place.index, 1)
        self.chunks = code.let(f"sdiv i64 {code.add(self.limit, CHUNK - 1)}, {CHUNK}")

    def begin(self, codes: Codes | None) -> None:
        """Write the start: nothing summed, then the blocks of codes."""
        code, heads = self.code, self.heads
        for number in range(heads.group):
            code.set("float", real(float("-inf")), code.place(self.tops, str(number), "float"))
            code.set("float", real(0.0), code.place(self.parts, str(number), "float"))
        for part in range(0, heads.group * heads.width, LANES):
            code.set(KIND, "zeroinitializer", code.place(self.sums, str(part), "float"))
        if codes is not None:
            self._coded(codes)

    def weigh(self, chunk: str) -> None:
        """Write the weights of a chunk."""
        self._scores(*self._part(chunk))
        for number in range(self.heads.group):
            self._weights(number)

    def add(self, chunk: str) -> None:
        """Write the addition of a chunk's weighted values."""
        self._add(*self._part(chunk))

    def finish(self) -> None:
        """Write the outputs."""
        code, heads = self.code, self.heads
        for number in range(heads.group):
            whole = code.get("float", code.place(self.parts, str(number), "float"))
            factor = spread(code, code.let(f"fdiv float {real(1.0)}, {whole}"), LANES)
            for at in range(number * heads.width, (number + 1) * heads.width, LANES):
                value = code.get(KIND, code.place(self.sums, str(at), "float"))
                code.set(KIND, code.let(f"fmul {KIND} {value}, {factor}"), code.place(self.out, str(at), "float"))

    def _part(self, chunk: str) -> tuple[str, str]:
        """Return the first place of a chunk, and how many of its places the row sees."""
        code = self.code
        start = code.multiply(chunk, CHUNK)
        left = code.let(f"sub i64 {self.limit}, {start}")
        return start, code.choose(code.compare("slt", left, CHUNK), left, CHUNK)

    def _scores(self, start: str, count: str) -> None:
        """Write products of queries with the keys of a chunk, four keys together; places beyond it get -infinity."""
        code, heads = self.code, self.heads
        blocks = code.let(f"sdiv i64 {code.add(count, _TOGETHER - 1)}, {_TOGETHER}")
        with code.loop("0", blocks) as block:
            first = code.multiply(block, _TOGETHER)
            at = code.place(self.keys, code.multiply(code.add(start, first), heads.width), "float")
            for low in range(0, heads.group, 3):
                self._products(at, first, range(low, min(low + 3, heads.group)))
        self._beyond(count)

    def _beyond(self, count: str) -> None:
        """Write scores of -infinity from number `count` of a chunk on."""
        code = self.code
        for number in range(self.heads.group):
            with code.loop(count, str(CHUNK)) as beyond:
                place = code.place(self.scores, code.add(beyond, number * CHUNK), "float")
                code.set("float", real(float("-inf")), place)

    def _coded(self, codes: Codes) -> None:
        """Write attention to the blocks of codes, as many at a time as make a chunk."""
        code, heads, place = self.code, self.heads, self.place
        number = code.add(code.multiply("%layer", heads.keys), self.head)
        start = code.multiply(code.multiply(number, place.blockroom), codes.bytes)
        records = code.place(code.let(f"inttoptr i64 {place.codes} to ptr"), start)
        blocks = CodedBlocks(code, heads, codes, records, self.queries, self.scores, self.sums)
        many = CHUNK // codes.group
        chunks = code.let(f"sdiv i64 {code.add(place.blocks, many - 1)}, {many}")
        with code.loop("0", chunks) as chunk:
            first = code.multiply(chunk, many)
            left = code.let(f"sub i64 {place.blocks}, {first}")
            count = code.choose(code.compare("slt", left, many), left, many)
            with code.loop("0", count) as block:
                blocks.scores(blocks.record(code.add(first, block)), code.multiply(block, codes.group))
            self._beyond(code.multiply(count, codes.group))
            for head in range(heads.group):
                self._weights(head)
            blocks.rescale(self.factors)
            with code.loop("0", count) as block:
                blocks.add(blocks.record(code.add(first, block)), code.multiply(block, codes.group))

    def _products(self, keys: str, first: str, numbers: range) -> None:
        code, width = self.code, self.heads.width
        sums = {(number, key): "zeroinitializer" for number in numbers for key in range(_TOGETHER)}
        for part in range(0, width, LANES):
            held = [code.get(KIND, code.place(keys, str(key * width + part), "float")) for key in range(_TOGETHER)]
            for number in numbers:
                query = code.get(KIND, code.place(self.queries, str(number * width + part), "float"))
                for key in range(_TOGETHER):
                    sums[number, key] = multiply_add(code, LANES, query, held[key], sums[number, key])
        for number in numbers:
            four = self._folded([sums[number, key] for key in range(_TOGETHER)])
            place = code.place(self.scores, code.add(first, number * CHUNK), "float")
            code.set("<4 x float>", four, place)

    def _folded(self, sums: list[str]) -> str:
        """Return the sums over each of four vectors."""
        code = self.code
        halves = []
        for one in sums:
            low, high = (
                code.let(
                    f"shufflevector {KIND} {one}, {KIND} poison, <4 x i32> <{', '.join(f'i32 {at}' for at in ats)}>"
                )
                for ats in (range(4), range(4, 8))
            )
            halves.append(code.let(f"fadd <4 x float> {low}, {high}"))
        pairs = [self._paired(halves[0], halves[1], (0, 1, 4, 5)), self._paired(halves[2], halves[3], (0, 1, 4, 5))]
        return self._paired(pairs[0], pairs[1], (0, 2, 4, 6))

    def _paired(self, left: str, right: str, firsts: tuple[int, ...]) -> str:
        """Return elements `firsts` of two vectors plus the others."""
        others = [at for at in range(8) if at not in firsts]
        masks = [", ".join(f"i32 {at}" for at in ats) for ats in (firsts, others)]
        one, two = (
            self.code.let(f"shufflevector <4 x float> {left}, <4 x float> {right}, <4 x i32> <{mask}>")
            for mask in masks
        )
        return self.code.let(f"fadd <4 x float> {one}, {two}")

    def _weights(self, number: int) -> None:
        """Turn a head's scores into weights against the largest so far; keep the factor of what was summed before."""
        code, scale = self.code, many(self.heads.scale)
        places = [code.place(self.scores, str(number * CHUNK + part), "float") for part in range(0, CHUNK, LANES)]
        values = [code.let(f"fmul {KIND} {code.get(KIND, place)}, {scale}") for place in places]
        highest = values[0]
        for value in values[1:]:
            highest = largest(code, highest, value)
        name = f"llvm.vector.reduce.fmax.v{LANES}f32"
        found = code.call("float", name, [KIND], [highest])
        top_place, part_place = (code.place(room, str(number), "float") for room in (self.tops, self.parts))
        before = code.get("float", top_place)
        top = code.choose(code.let(f"fcmp ogt float {found}, {before}"), found, before, "float")
        code.set("float", top, top_place)
        factor = exponential_of(code, code.let(f"fsub float {before}, {top}"))
        code.set("float", factor, code.place(self.factors, str(number), "float"))
        everywhere, summed = spread(code, top, LANES), "zeroinitializer"
        for place, value in zip(places, values, strict=True):
            weight = exponential(code, code.let(f"fsub {KIND} {value}, {everywhere}"))
            code.set(KIND, weight, place)
            summed = code.let(f"fadd {KIND} {summed}, {weight}")
        old = code.let(f"fmul float {code.get('float', part_place)}, {factor}")
        code.set("float", code.let(f"fadd float {old}, {total(code, summed)}"), part_place)

    def _add(self, start: str, count: str) -> None:
        """Add the weighted values of a chunk to the sums, as many columns at a time as registers hold."""
        code, heads = self.code, self.heads
        columns = LANES * max(1, 12 // heads.group)
        for left in range(0, heads.width, columns):
            parts = range(left, min(left + columns, heads.width), LANES)
            sums = {}
            for number in range(heads.group):
                factor = spread(code, code.get("float", code.place(self.factors, str(number), "float")), LANES)
                for part in parts:
                    place = code.place(self.sums, str(number * heads.width + part), "float")
                    sums[number, part] = code.variable(KIND, "zeroinitializer")
                    code.set(KIND, code.let(f"fmul {KIND} {code.get(KIND, place)}, {factor}"), sums[number, part])
            with code.loop("0", count) as at:
                values = code.place(self.values, code.multiply(code.add(start, at), heads.width), "float")
                held = {part: code.get(KIND, code.place(values, str(part), "float")) for part in parts}
                for number in range(heads.group):
                    one = code.get("float", code.place(self.scores, code.add(at, number * CHUNK), "float"))
                    weight = spread(code, one, LANES)
                    for part in parts:
                        place = sums[number, part]
                        code.set(KIND, multiply_add(code, LANES, weight, held[part], code.get(KIND, place)), place)
            for (number, part), value in sums.items():
                place = code.place(self.sums, str(number * heads.width + part), "float")
                code.set(KIND, code.get(KIND, value), place)
