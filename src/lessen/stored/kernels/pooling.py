"""The function around a source: bags of ids in, sums or means of their rows out, the bags shared out over threads."""

from __future__ import annotations

from dataclasses import dataclass

from lessen.stored.kernels.assembly import Assembly, floats, multiply_add, spread
from lessen.stored.kernels.located import Located
from lessen.stored.kernels.sources import Columns, Source

MOST_AHEAD, LEAST_AHEAD, AHEAD_BYTES = 64, 4, 1 << 14
"""Ids between a row that is asked for and the row that is read: as many as a half of a core's first cache holds."""
HEAD = ("ids", "offsets", "starts", "total", "bags", "length", "weights", "out", "padding", "alone")
FAULT = len(HEAD)
"""Place of the number that a call sets when ids, offsets or stored indices lie outside their tables."""


@dataclass(frozen=True)
class Pooling:
    """What the lines around a source depend on.

    Attributes:
        integer: "i32" or "i64", the kind of ids and offsets.
        offsets: bags start where `offsets` say; else all have `length` ids.
        single: every bag is one id (then no loop is written).
    """

    dim: int
    integer: str
    offsets: bool
    single: bool
    weighted: bool
    mean: bool
    padding: bool


def write(source: Source, pooling: Pooling) -> str:
    """Return the assembly of `kernel(ptr)`: the argument is an array of i64, `HEAD`, the fault, then the source's."""
    code = Assembly()
    names = [*HEAD, "fault", *source.values("s")]
    entry = []
    for number, name in enumerate(names):
        entry.append(f"  %{name}place = getelementptr i64, ptr %arguments, i64 {number}")
        entry.append(f"  %{name} = load i64, ptr %{name}place")
    for name in HEAD:
        entry.append(f"  %{name}ptr = inttoptr i64 %{name} to ptr")
    _bags(code, source, pooling)
    known = code.get("i1", code.bad)
    with code.when(known):
        code.set("i64", "1", "%faultplace")
    body = "\n".join([*entry, *code.variables, *code.lines])
    head = [*code.declared.values(), *code.constants, "define void @kernel(ptr %arguments) {"]
    return "\n".join([*head, body, "  ret void", "}"])


def _bags(code: Assembly, source: Source, pooling: Pooling) -> None:
    """Write the loop over this thread's bags: all of them where the caller is alone."""
    alone = code.compare("ne", "%alone", 0)
    part = code.choose(alone, "0", code.wide(code.call("i32", "omp_get_thread_num", [], []), "i32"))
    parts = code.choose(alone, "1", code.wide(code.call("i32", "omp_get_num_threads", [], []), "i32"))
    share = [code.let(f"sdiv i64 {code.multiply('%bags', number)}, {parts}") for number in (part, code.add(part, 1))]
    blocks = source.blocks(pooling.dim)
    ahead = Ahead(code, source, pooling)
    if isinstance(source, Located) and len(blocks) == 1:
        ahead = KeptAhead(code, source, pooling, _range(code, pooling, share[0])[0])
    with code.loop(*share) as bag:
        start, end = _range(code, pooling, bag)
        row = code.place("%outptr", code.multiply(bag, pooling.dim), "float")
        for number, columns in enumerate(blocks):
            _bag(code, source, pooling, columns, (start, end), row, ahead if number == 0 else None)


def _range(code: Assembly, pooling: Pooling, bag: str) -> tuple[str, str]:
    """Return the first place of a bag and the place after its last, checked."""
    if not pooling.offsets:
        start = code.multiply(bag, "%length")
        return start, code.add(start, "%length")
    start = _integer(code, pooling, "%offsetsptr", bag)
    following = code.add(bag, 1)
    known = code.compare("slt", following, "%starts")
    given = _integer(code, pooling, "%offsetsptr", code.choose(known, following, 0))
    end = code.choose(known, given, "%total")
    right = code.compare("sge", start, 0)
    for low, high in ((start, end), (end, "%total")):
        right = code.let(f"and i1 {right}, {code.compare('sle', low, high)}")
    code.require(right)
    return code.choose(right, start, 0), code.choose(right, end, 0)


def _integer(code: Assembly, pooling: Pooling, base: str, number: str) -> str:
    value = code.get(pooling.integer, code.place(base, number, pooling.integer))
    return value if pooling.integer == "i64" else code.wide(value, "i32", "sext")


class Ahead:
    """Requests for the rows of ids that come up, `stride` ids before they are read."""

    def __init__(self, code: Assembly, source: Source, pooling: Pooling) -> None:
        self.code, self.source, self.pooling = code, source, pooling
        self.stride = max(LEAST_AHEAD, min(MOST_AHEAD, AHEAD_BYTES // source.bytes_read))

    def ask(self, place: str) -> list[str]:
        """Ask for the row of the id a stride after `place`; return where that of the id at `place` lies, if known."""
        self.source.prefetch(self.code, "s", lambda strides: self.upcoming(place, strides))
        return []

    def upcoming(self, place: str, strides: int) -> str:
        """Return the id so many strides after a place; beyond the end, the last one."""
        code = self.code
        later, last = code.add(place, self.stride * strides), code.add("%total", -1)
        inside = code.compare("slt", later, "%total")
        return _integer(code, self.pooling, "%idsptr", code.choose(inside, later, last))


class KeptAhead(Ahead):
    """Keeps where rows lie from the request to the reading, in a ring of `stride` ids.

    The numbers of the id that is asked for take the room of those of the id that is read. Asks for the first stride
    of a thread, which begins at place `first`, at once.
    """

    def __init__(self, code: Assembly, source: Located, pooling: Pooling, first: str) -> None:
        super().__init__(code, source, pooling)
        self.located = source
        self.stride = 1 << (self.stride - 1).bit_length()  # a place's room is then its lowest bits
        self.ring = code.room("i64", self.stride * source.numbers)
        with code.loop(first, code.add(first, self.stride)) as place:
            self._keep(self.upcoming(place, 0), self._room(place))

    def ask(self, place: str) -> list[str]:
        """Ask for the row of the id a stride after `place`; return where that of the id at `place` lies."""
        room = self._room(place)
        known = [self.code.get("i64", address) for address in room]
        self._keep(self.upcoming(place, 1), room)
        return known

    def _keep(self, number: str, room: list[str]) -> None:
        """Ask for the row of an id and keep where it lies."""
        places = self.located.locate(self.code, "s", number)
        self.located.prefetch_at(self.code, "s", places)
        for place, address in zip(places, room, strict=True):
            self.code.set("i64", place, address)

    def _room(self, place: str) -> list[str]:
        """Return the addresses that keep the numbers of the id at a place."""
        count = self.located.numbers
        first = self.code.multiply(self.code.let(f"and i64 {place}, {self.stride - 1}"), count)
        start = self.code.place(self.ring, first, "i64")
        return [self.code.place(start, str(number), "i64") for number in range(count)]


def _read(code: Assembly, source: Source, number: str, columns: list[Columns], places: list[str]) -> list[str]:
    """Return the columns of an id's row, which lies at `places` if they were kept."""
    if places and isinstance(source, Located):
        return source.read_at(code, "s", places, columns)
    return source.read(code, "s", number, columns)


def _bag(
    code: Assembly,
    source: Source,
    pooling: Pooling,
    columns: list[Columns],
    places: tuple[str, str],
    row: str,
    ahead: Ahead | None,
) -> None:
    """Write what sums some columns of one bag and stores them; the first block asks for rows ahead."""
    if pooling.single:
        kept = ahead.ask(places[0]) if ahead else []
        number = _integer(code, pooling, "%idsptr", places[0])
        values = _read(code, source, number, columns, kept)
        if pooling.padding:
            gone = code.compare("eq", number, "%padding")
            values = [
                code.choose(gone, "zeroinitializer", value, floats(width))
                for value, (_, width) in zip(values, columns, strict=True)
            ]
    else:
        values = _sums(code, source, pooling, columns, places, ahead)
    for value, (start, width) in zip(values, columns, strict=True):
        code.set(floats(width), value, code.place(row, str(start), "float"))


def _sums(
    code: Assembly,
    source: Source,
    pooling: Pooling,
    columns: list[Columns],
    places: tuple[str, str],
    ahead: Ahead | None,
) -> list[str]:
    """Write the loop over the ids of a bag; return the sums or means."""
    sums = [code.variable(floats(width), "zeroinitializer") for _, width in columns]
    count = code.variable("i64", "0")
    for place, (_, width) in zip([*sums], columns, strict=True):
        code.set(floats(width), "zeroinitializer", place)
    code.set("i64", "0", count)
    with code.loop(*places) as number:
        kept = ahead.ask(number) if ahead else []
        chosen = _integer(code, pooling, "%idsptr", number)
        if pooling.padding:
            with code.when(code.compare("ne", chosen, "%padding")):
                values = _read(code, source, chosen, columns, kept)
                _add(code, pooling, columns, number, values, [*sums, count])
        else:
            values = _read(code, source, chosen, columns, kept)
            _add(code, pooling, columns, number, values, [*sums, count])
    found = [code.get(floats(width), place) for place, (_, width) in zip(sums, columns, strict=True)]
    if not pooling.mean:
        return found
    counted = code.get("i64", count)
    divisor = code.let(f"sitofp i64 {code.choose(code.compare('sgt', counted, 1), counted, 1)} to float")
    return [
        code.let(f"fdiv {floats(width)} {value}, {spread(code, divisor, width)}")
        for value, (_, width) in zip(found, columns, strict=True)
    ]


def _add(
    code: Assembly, pooling: Pooling, columns: list[Columns], number: str, values: list[str], sums: list[str]
) -> None:
    """Write the addition of the row of id `number` of the call to the sums and to the count, the last of them."""
    weight = code.get("float", code.place("%weightsptr", number, "float")) if pooling.weighted else ""
    for value, place, (_, width) in zip(values, sums, columns, strict=False):
        before = code.get(floats(width), place)
        if pooling.weighted:
            after = multiply_add(code, width, spread(code, weight, width), value, before)
        else:
            after = code.let(f"fadd {floats(width)} {before}, {value}")
        code.set(floats(width), after, place)
    code.set("i64", code.add(code.get("i64", sums[-1]), 1), sums[-1])
