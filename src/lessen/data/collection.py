"""Collections for retrieval: documents, queries, and which documents answer which query.

Read from a folder of Cranfield in TREC's form, or made of documents: the first sentence of each looks for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lessen.data.catalogue import read
from lessen.errors import DataError
from lessen.log import SILENT, Log

CRANFIELD = ("cran.all.1400.xml", "cran.qry.xml", "cranqrel.trec.txt")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")
_LEE, _RATINGS = "gensim/test/test_data/lee.cor", "gensim/test/test_data/similarities0-1.txt"


@dataclass(frozen=True)
class Collection:
    """Texts that are searched, and judged queries."""

    documents: Sequence[str]
    queries: Sequence[str]
    grades: Sequence[Mapping[int, int]]
    """For each query, the grade above 0 of each relevant document, by its place in `documents`."""

    def part(self, places: Sequence[int]) -> Collection:
        """Return the same documents with only the queries at `places`."""
        return Collection(self.documents, [self.queries[n] for n in places], [self.grades[n] for n in places])


def known_items(documents: Sequence[str]) -> Collection:
    """Return a collection whose queries are the first sentences of documents and whose answers are what follows.

    Documents of one sentence are left out. Such queries are easier than people's: they share a document's words.

    Raises:
        DataError: fewer than two documents have two sentences.
    """
    pairs = [tuple(_SENTENCE.split(document, maxsplit=1)) for document in documents]
    whole = [pair for pair in pairs if len(pair) == 2]
    if len(whole) < 2:
        raise DataError(f"{len(whole)} of {len(documents)} documents have two sentences; at least two are needed")
    return Collection([rest for _, rest in whole], [first for first, _ in whole], [{n: 1} for n in range(len(whole))])


def read_cranfield(folder: Path) -> Collection:
    """Read the three files of Cranfield in TREC's form; of a document its text counts, which its
    title begins, and of judgements the grades above 0.

    Raises:
        DataError: a file is absent or not of that form, or names what another does not hold.
    """
    for name in CRANFIELD:
        if not (folder / name).is_file():
            raise DataError(f"{folder} holds no {name}; Cranfield in TREC's form is {', '.join(CRANFIELD)}")
    documents = dict(_tagged(folder / CRANFIELD[0], "doc", "docno", "text"))
    queries = [text for _, text in _tagged(folder / CRANFIELD[1], "top", "num", "title")]
    places = {number: place for place, number in enumerate(documents)}
    grades: list[dict[int, int]] = [{} for _ in queries]
    for line, text in enumerate((folder / CRANFIELD[2]).read_text("utf-8").splitlines(), 1):
        fields = text.split()
        if not fields:
            continue
        try:
            query, document, grade = int(fields[0]), fields[2], int(fields[3])
            if not 1 <= query <= len(queries):
                raise ValueError(f"there are {len(queries)} queries")
            if grade > 0:
                grades[query - 1][places[document]] = grade
        except (ValueError, IndexError, KeyError) as error:
            raise DataError(f"{folder / CRANFIELD[2]}, line {line}: {text!r} is no judgement ({error})") from error
    judged = [number for number, found in enumerate(grades) if found]
    return Collection(list(documents.values()), queries, grades).part(judged)


def _tagged(path: Path, block: str, number: str, field: str) -> list[tuple[str, str]]:
    """Return (number, text) of each block of a file in TREC's form, whose texts may hold any sign."""
    raw = path.read_text("utf-8", errors="replace")
    found = []
    for body in re.findall(rf"<{block}>(.*?)</{block}>", raw, re.DOTALL):
        name, text = (re.search(rf"<{tag}>(.*?)</{tag}>", body, re.DOTALL) for tag in (number, field))
        if name is None or text is None:
            raise DataError(f"{path}: a <{block}> lacks <{number}> or <{field}>")
        found.append((" ".join(name[1].split()), " ".join(text[1].split())))
    if not found:
        raise DataError(f"{path} holds no <{block}>")
    return found


def read_lee(log: Log = SILENT) -> tuple[list[str], np.ndarray]:
    """Return the 50 news items of Lee, Pincombe and Welsh (2005) and how alike people find them, float64 [50, 50].

    Raises:
        DataError: the package that ships them cannot be had.
    """
    items = [line.strip() for line in read("lee-news", _LEE, log).decode("latin-1").splitlines() if line.strip()]
    rows = [line.split() for line in read("lee-news", _RATINGS, log).decode("ascii").splitlines() if line.strip()]
    ratings = np.asarray(rows, dtype=np.float64)
    if ratings.shape != (len(items), len(items)):
        raise DataError(f"{len(items)} items and ratings of shape {list(ratings.shape)} do not belong together")
    return items, np.maximum(ratings, ratings.T)
