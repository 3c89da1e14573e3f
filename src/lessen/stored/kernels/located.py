"""Sources whose rows lie where arithmetic on the id says: the numbers are found once, kept, and read later."""

from __future__ import annotations

from lessen.stored.kernels.assembly import Assembly, block_of, floats
from lessen.stored.kernels.sources import Columns, Node, Source, Upcoming

Place = tuple[str, str, str]
"""Block, id inside the block, id among all computed rows."""


class Placed(Node):
    """What reads rows at numbers (i64) that its `locate` returned, at once or later."""

    @property
    def numbers(self) -> int:
        """Numbers that `locate` returns."""
        raise NotImplementedError

    def read_at(self, code: Assembly, at: str, places: list[str], columns: list[Columns]) -> list[str]:
        """Return the columns of the row that lies there."""
        raise NotImplementedError

    def prefetch_at(self, code: Assembly, at: str, places: list[str]) -> None:
        """Ask for what `read_at` will touch."""
        raise NotImplementedError


class Located(Placed):
    """A source whose rows lie at numbers that arithmetic on the id gives.

    Rows are asked for long before they are read: the numbers can be kept meanwhile (see `pooling`), not found twice.
    """

    def locate(self, code: Assembly, at: str, number: str) -> list[str]:
        """Return where the row of any id (i64) lies, as far as arithmetic tells."""
        raise NotImplementedError

    def read(self, code: Assembly, at: str, number: str, columns: list[Columns]) -> list[str]:
        """Return the columns of the row of an id."""
        return self.read_at(code, at, self.locate(code, at, number), columns)

    def prefetch(self, code: Assembly, at: str, upcoming: Upcoming) -> None:
        """Ask for the row of an id that comes up."""
        self.prefetch_at(code, at, self.locate(code, at, upcoming(1)))


class Computed(Placed):
    """What reads the ids that have no row of their own."""

    def locate(self, code: Assembly, at: str, place: Place) -> list[str]:
        """Return where the parts of a row lie."""
        raise NotImplementedError


class PartlyExact(Located):
    """Rows of their own for the ids of some blocks; `computed` reads all others."""

    def __init__(
        self,
        exact: Source,
        computed: Computed,
        starts: tuple[int, ...],
        exact_first: tuple[int, ...],
        computed_first: tuple[int, ...],
    ) -> None:
        parts: dict[str, Source] = {"computed": computed}
        if max(exact_first) >= 0:
            parts["exact"] = exact
        super().__init__({}, parts, (starts, exact_first, computed_first))
        self.starts, self.exact_first, self.computed_first = starts, exact_first, computed_first
        self.computed = computed
        self.others = next((n for n, first in enumerate(exact_first) if first < 0), 0)

    def sized(self) -> bool:
        """Tell whether each block says where its rows start; own rows are checked as they are read."""
        return len(self.starts) == len(self.exact_first)

    @property
    def numbers(self) -> int:
        """Those of the computed row; then whether an own row is read instead, and which."""
        return self.computed.numbers + 2 * ("exact" in self.parts)

    def locate(self, code: Assembly, at: str, number: str) -> list[str]:
        """Return where the computed row lies; then 1 and the own row, or 0 and 0."""
        block, own = block_of(code, number, self.starts)
        row = []
        if "exact" in self.parts:
            first = code.entry(self.exact_first, block)
            known = code.compare("sge", first, 0)
            row = [code.wide(known, "i1"), code.choose(known, code.add(first, own), 0)]
            block, own = code.choose(known, str(self.others), block), code.choose(known, "0", own)
        compact = code.add(code.entry(self.computed_first, block), own)
        return [*self.computed.locate(code, f"{at}computed_", (block, own, compact)), *row]

    def read_at(self, code: Assembly, at: str, places: list[str], columns: list[Columns]) -> list[str]:
        """Return the own or the computed row."""
        values = self.computed.read_at(code, f"{at}computed_", places[: self.computed.numbers], columns)
        if "exact" not in self.parts:
            return values
        known = code.compare("ne", places[-2], 0)
        rows = self.parts["exact"].read(code, f"{at}exact_", places[-1], columns)
        return [
            code.choose(known, own, value, floats(width))
            for own, value, (_, width) in zip(rows, values, columns, strict=True)
        ]

    def prefetch_at(self, code: Assembly, at: str, places: list[str]) -> None:
        """Ask for both."""
        self.computed.prefetch_at(code, f"{at}computed_", places[: self.computed.numbers])
        if "exact" in self.parts:
            self.parts["exact"].prefetch(code, f"{at}exact_", lambda _: places[-1])
