"""What compiled steps agree on: the heads of a block, where a row stands, and how blocks of codes lie in memory."""

from __future__ import annotations

from dataclasses import dataclass

CHUNK = 64
"""Places whose scores are held at a time."""
PLACE = ("position", "index", "cache", "room", "codes", "blocks", "blockroom")
"""Seven int64 of each row: its position in its text; its place in the float cache, the address of this and the places
that it has room for; the address of blocks of codes, those that are there, and those that there is room for."""


@dataclass(frozen=True)
class Heads:
    """Query heads, key heads, width of a head, factor of scores, and epsilon of norms of heads if there are some."""

    queries: int
    keys: int
    width: int
    scale: float
    epsilon: float | None = None

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.queries // self.keys


@dataclass(frozen=True)
class Codes:
    """Blocks of `group` tokens in codes, see `compiled.codes`; values share a scale over `run` channels of a token.

    `lanes`: codes that are widened at a time.
    """

    bits: int
    group: int
    width: int
    run: int
    lanes: int

    @property
    def runs(self) -> int:
        """Scales of the values of a token."""
        return self.width // self.run

    @property
    def fields(self) -> int:
        """Codes of a byte."""
        return 8 // self.bits

    @property
    def offsets(self) -> list[int]:
        """The starts of codes, scales and minimums of keys, then of values, in a record."""
        codes, keys, values = self.group * self.width // self.fields, 2 * self.width, 2 * self.runs * self.group
        found = [0]
        for size in (codes, keys, keys, codes, values):
            found.append(found[-1] + size)
        return found

    @property
    def bytes(self) -> int:
        """Bytes of a record: whole cache lines."""
        return -(-(self.offsets[-1] + 2 * self.runs * self.group) // 64) * 64
