"""Training batches, pass after pass, in groups of one step, from a place that a checkpoint can name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, NamedTuple

from lessen.errors import TaskError
from lessen.train.parallel import Group


class Piece(NamedTuple):
    """One batch of a step."""

    batch: Any
    weight: float
    """Share of the rows of the whole batch that this process has."""


class Stream:
    """The batches of `batches(1)`, `batches(2)`, ..., of which each process sees its rows.

    Args:
        size: batches in a group; the last group of a pass may have fewer.
    """

    def __init__(self, batches: Callable[[int], Iterable[Any]], ranks: Group, size: int) -> None:
        self.batches, self.ranks, self.size = batches, ranks, size
        self.passes = self.taken = 0
        """Passes that are finished, and batches taken of the one under way."""
        self._open: Iterator[Any] | None = None

    def groups_in_a_pass(self) -> int:
        """Return how many groups the first pass has: by its length where it tells one, else by going through it."""
        first = self.batches(1)
        known = isinstance(first, Sized) and self.ranks.size == 1
        count = len(first) if known else sum(1 for _ in self.ranks.shard(first))  # type: ignore[arg-type]
        return -(-count // self.size)

    def seek(self, passes: int, taken: int) -> None:
        """Go to a place: so many passes done, so many batches taken of the next."""
        self.passes, self.taken = passes, taken
        self._open = iter(self.ranks.shard(self.batches(passes + 1))) if taken else None
        for _ in itertools.islice(self._open or (), taken):
            pass

    def one_pass(self) -> Iterator[list[Piece]]:
        """Yield the groups that are left of the pass. Raises TaskError when the pass is empty."""
        group = self._next()
        if not group:  # a cap stopped at the very end of the pass before
            self._close()
            group = self._next()
        while group:
            yield group
            group = self._next()
        self._close()

    def across(self, count: int) -> Iterator[list[Piece]]:
        """Yield so many groups, beginning new passes as needed. Raises TaskError when a pass is empty."""
        while count:
            group = self._next()
            if group:
                count -= 1
                yield group
            else:
                self._close()

    def _next(self) -> list[Piece]:
        if self._open is None:
            self._open = iter(self.ranks.shard(self.batches(self.passes + 1)))
        group = [Piece(batch, self.ranks.weight) for batch in itertools.islice(self._open, self.size)]
        self.taken += len(group)
        return group

    def _close(self) -> None:
        if not self.taken:
            raise TaskError("the train split is empty: no batch to learn from; give it rows or choose another split")
        self.passes, self.taken, self._open = self.passes + 1, 0, None
