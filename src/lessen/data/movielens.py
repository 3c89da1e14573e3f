"""MovieLens-100k as a click data set: label rating >= 4, three ways to cut it, features that see the past only.

Two facts of the data decide everything here. Three quarters of the rows share their second with another row of the
same user, so "before" must mean a strictly smaller timestamp. And a cut in time leaves 85.8 % of the test rows with
users never seen in training, so it measures something else than a cut inside each user's ratings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lessen.data.cache import read_member
from lessen.data.catalogue import DATASETS
from lessen.data.columns import Columns, IdField, Kind, Layout
from lessen.errors import DataError
from lessen.stored.fields import Segment

Strings = NDArray[np.str_]
Ints = NDArray[np.int64]
Cut = Literal["warm", "cold", "random"]
FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
AGE_BOUNDS = (18, 25, 35, 45, 50, 56)
TRAIN, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True)
class Ratings:
    """The ratings in order of (timestamp, user, item), joined with users and items; every array has one row each."""

    user: Strings
    item: Strings
    timestamp: Ints
    label: NDArray[np.float32]
    single: dict[str, Strings]
    """The categorical fields, `user` and `item` first."""
    genres: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.label)


def load_ratings(package: Path) -> Ratings:
    """Read the three tables out of the package and join them.

    Raises:
        DataError: a table is missing, damaged, has other columns or a value that is no number.
    """
    inter = _table(package, "inter", ("user_id", "item_id", "rating", "timestamp"))
    users = _table(package, "user", ("user_id", "age", "gender", "occupation", "zip_code"))
    items = _table(package, "item", ("item_id", "release_year", "class"))
    stamp = _numbers(inter["timestamp"], "timestamp").astype(np.int64)
    order = np.lexsort((inter["item_id"], inter["user_id"], stamp))
    user, item, stamp = inter["user_id"][order], inter["item_id"][order], stamp[order]
    of_user, of_item = _rows_of(users["user_id"], user, "user"), _rows_of(items["item_id"], item, "item")
    age = np.digitize(_numbers(users["age"], "age"), AGE_BOUNDS).astype(str)
    single = {
        "user": user,
        "item": item,
        "age": age[of_user],
        "gender": users["gender"][of_user],
        "occupation": users["occupation"][of_user],
        "zip": users["zip_code"].astype("U2")[of_user],
        "year": items["release_year"][of_item],
        "hour": (stamp // 3600 % 24).astype(str),
        "weekday": ((stamp // 86400 + 3) % 7).astype(str),  # 1970-01-01 was a Thursday
    }
    genres = [tuple(value.split()) for value in items["class"]]
    label = (_numbers(inter["rating"], "rating")[order] >= 4).astype(np.float32)
    return Ratings(user, item, stamp, label, single, tuple(genres[row] for row in of_item))


def _table(package: Path, which: str, wanted: tuple[str, ...]) -> dict[str, Strings]:
    name = f"{FOLDER}.{which}"
    text = read_member(package, name, DATASETS["movielens-100k"].members[name]).decode("utf-8")
    lines = text.splitlines()
    header = [column.partition(":")[0] for column in lines[0].split("\t")]
    rows = [line.split("\t") for line in lines[1:]]
    missing = sorted(set(wanted) - set(header))
    if missing or any(len(row) != len(header) for row in rows):
        raise DataError(f"{name} in {package} has ragged rows or lacks the columns {missing}")
    columns = list(zip(*rows, strict=True))
    return {column: np.array(columns[header.index(column)], dtype=str) for column in wanted}


def _numbers(values: Strings, what: str) -> NDArray[np.float64]:
    try:
        return values.astype(np.float64)
    except ValueError as error:
        raise DataError(f"the column {what} of MovieLens-100k holds a value that is no number: {error}") from error


def _rows_of(keys: Strings, wanted: Strings, what: str) -> Ints:
    """Return the row of `keys` that holds each of `wanted`."""
    order = np.argsort(keys)
    place = np.searchsorted(keys, wanted, sorter=order)
    rows = order[np.minimum(place, len(keys) - 1)]
    unknown = keys[rows] != wanted
    if unknown.any():
        raise DataError(f"the ratings name the {what} {wanted[unknown][0]!r}, which the {what} table lacks")
    return rows


def partition(ratings: Ratings, cut: Cut) -> Ints:
    """Return 0, 1 or 2 a row: train, validation, test.

    warm: each user's last tenth is test, the tenth before it validation. cold: the same shares of all rows in order
    of time. random: 8:1:1 by the seed that BARS-style runs used; only to compare with published habits, because
    histories would carry test labels.
    """
    rows = len(ratings)
    if cut == "warm":
        _, user, count = np.unique(ratings.user, return_inverse=True, return_counts=True)
        by_user = np.argsort(user, kind="stable")
        rank = np.empty(rows, dtype=np.int64)
        rank[by_user] = np.arange(rows) - np.repeat(np.cumsum(count) - count, count)
        share = rank / count[user]
        return np.where(share < 0.8, TRAIN, np.where(share < 0.9, VALIDATION, TEST))
    place = np.arange(rows)
    if cut == "random":
        place[np.random.RandomState(2021).permutation(rows)] = np.arange(rows)
    return np.where(place < int(0.8 * rows), TRAIN, np.where(place < int(0.9 * rows), VALIDATION, TEST))


def liked_before(ratings: Ratings, length: int) -> Ints:
    """Return [rows, length]: the rows of the user's last liked items with a strictly smaller timestamp, else -1.

    Oldest first, filled from the left.
    """
    _, user = np.unique(ratings.user, return_inverse=True)
    key = user.astype(np.int64) * (int(ratings.timestamp.max()) + 1) + ratings.timestamp
    liked = np.flatnonzero(ratings.label == 1)
    liked = liked[np.argsort(key[liked], kind="stable")]
    # among the liked rows in order of (user, time): those of this user that are older than this row
    stop = np.searchsorted(key[liked], key, side="left")
    first = np.searchsorted(user[liked], user, side="left")
    start = np.maximum(first, stop - length)
    place = start[:, None] + np.arange(length)
    return np.where(place < stop[:, None], liked[np.minimum(place, len(liked) - 1)], -1)


def encode(ratings: Ratings, part: Ints, history: int) -> tuple[Columns, Layout]:
    """Return all rows as columns of global ids, vocabularies taken from the train rows only.

    Args:
        part: as `partition` returns it.
        history: how many of the user's recent liked items to give; 0 leaves the field out.
    """
    segments: list[Segment] = []
    fields: list[IdField] = []
    columns: list[NDArray[np.int32]] = []
    train = part == TRAIN

    def add(name: str, kind: Kind, ids: NDArray[np.int32], segment: str) -> None:
        fields.append(IdField(name, kind, sum(c.shape[1] for c in columns), ids.shape[1], segment))
        columns.append(ids)

    for name, values in ratings.single.items():
        ids, segment = _vocabulary(name, values, train, _next_row(segments))
        segments.append(segment)
        add(name, "categorical", ids[:, None], name)
    genres = _padded(ratings.genres)
    ids, segment = _vocabulary("genres", genres.ravel(), np.repeat(train, genres.shape[1]), _next_row(segments))
    segments.append(segment)
    add("genres", "multi", ids.reshape(genres.shape), "genres")
    if history:
        rows = liked_before(ratings, history)
        item = columns[fields.index(next(f for f in fields if f.name == "item"))][:, 0]
        add("history", "sequence", np.where(rows < 0, 0, item[rows]).astype(np.int32), "item")
    layout = Layout(tuple(fields), tuple(segments))
    return Columns(torch.from_numpy(np.hstack(columns)), torch.from_numpy(ratings.label), layout), layout


def _next_row(segments: list[Segment]) -> int:
    return segments[-1].start + segments[-1].rows if segments else 1


def _vocabulary(name: str, values: Strings, train: NDArray[np.bool_], start: int) -> tuple[NDArray[np.int32], Segment]:
    """Return global ids: `start` for values unseen in train, then the seen ones in order; 0 for the empty string."""
    distinct, code = np.unique(values, return_inverse=True)
    seen = np.zeros(len(distinct), dtype=bool)
    seen[code[train]] = True
    seen &= distinct != ""
    ids = np.where(seen, start + np.cumsum(seen), start)
    ids = np.where(distinct == "", 0, ids)
    return ids[code].astype(np.int32), Segment(name, start, int(seen.sum()) + 1)


def _padded(values: tuple[tuple[str, ...], ...]) -> Strings:
    width = max(map(len, values))
    return np.array([[*row, *[""] * (width - len(row))] for row in values], dtype=str)
