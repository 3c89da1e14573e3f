"""One row found by look-ups: ids and numbers of its single cells, without a column of its own for each of them.

A column of one cell costs a library of columns as much as one of a thousand; a wide row has thousands. What is not
plain here (a number that is none, several ids in a cell, a bucketed number) is left to the path of files.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lessen.data.readers.values import numerals
from lessen.data.schema import FieldSchema
from lessen.data.vocabulary import Hashed, Vocabulary


@dataclass(frozen=True)
class Place:
    """A field of one id: its column in the id matrix, its vocabulary and that vocabulary's first table row."""

    name: str
    column: int
    vocabulary: Vocabulary | Hashed
    first: int
    by_number: bool
    """Whether every number is taken in its canonical spelling."""


class SingleCells:
    """The cells of a row that look-ups can encode; made once, for an encoder's fields."""

    def __init__(
        self, places: Sequence[Place], numeric: Sequence[FieldSchema], fitted: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.places, self.numeric = tuple(places), tuple(spec.name for spec in numeric)
        self.fill = np.array([np.nan if spec.fill is None else spec.fill for spec in numeric], dtype=np.float64)
        self.mean = np.array([fitted[name].get("mean", 0.0) for name in self.numeric], dtype=np.float64)
        self.deviation = np.array([fitted[name].get("deviation", 1.0) for name in self.numeric], dtype=np.float64)

    def ids(self, cells: Mapping[str, str | list[str]], into: NDArray[np.int32]) -> set[str]:
        """Write the ids of the row into `into` [1, columns]; returns the names of the fields that were written."""
        texts = [cells[place.name] for place in self.places]
        known = [place for place, text in zip(self.places, texts, strict=True) if isinstance(text, str)]
        words = [text for text in texts if isinstance(text, str)]
        found: list[int | None] = [
            None if place.by_number else place.vocabulary.find(word) for place, word in zip(known, words, strict=True)
        ]
        rest = [at for at, place in enumerate(known) if found[at] is None]
        keys = numerals(pl.Series([words[at] for at in rest], dtype=pl.String)).to_list() if rest else []
        for at, key in zip(rest, keys, strict=True):
            found[at] = _by_key(known[at], words[at], key)
        for place, local in zip(known, found, strict=True):
            into[0, place.column] = place.first + (local or 0)
        return {place.name for place in known}

    def numbers(self, cells: Mapping[str, str | list[str]], into: NDArray[np.float32]) -> set[str]:
        """Write the row's plain numbers into `into` [1, numbers]; returns the names of those that were written."""
        if not self.numeric:
            return set()
        texts = [cells[name] for name in self.numeric]
        found = pl.Series(texts, dtype=pl.String).cast(pl.Float64, strict=False).to_numpy().astype(np.float64)
        found = np.where([text == "" for text in texts], self.fill, found)
        found = (found - self.mean) / self.deviation
        fits = np.abs(found) <= np.finfo(np.float32).max
        into[0, fits] = found[fits]
        return {name for name, fit in zip(self.numeric, fits, strict=True) if fit}


def _by_key(place: Place, word: str, key: str | None) -> int | None:
    """Return the local id of a word that spells the number `key`, or none."""
    vocabulary = place.vocabulary
    if isinstance(vocabulary, Hashed):
        return 1 + zlib.crc32((key or word).encode()) % vocabulary.buckets
    if place.by_number:
        local = vocabulary.find(key or word)
        if local is not None:
            return local
    return None if key is None or vocabulary.exact else vocabulary.find_number(key)
