"""Outcomes: what happened on each test unit, as named columns. Metrics read them, intervals resample their units.

clicks, classes   score, target [, weight]      language   nll, tokens, bytes     questions   right
retrieval         ndcg@10, recall@100, ...      pictures   bits, pixels, squared_error

A unit is what is drawn anew when the test set is: a row, a document, a question, a query, a picture. Columns hold sums
of a unit, never one number a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lessen.errors import NonFiniteError, TaskError

Array = NDArray[np.generic]

GIVEN = frozenset({"target", "weight", "tokens", "words", "bytes", "pixels", "values", "relevant", "unit"})
"""Columns that the data give, whatever the model: two models judged on the same units agree on them."""
GROUP = "group"


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Columns of numbers, one row a test unit, and an optional group (a user, a video, a subject).

    Args:
        columns: numbers or truth values by name, each [units, ...].
        group: integers or strings [units]; kept as integer codes in sorted order.
        given: names of the columns that the data give; the others are made by the model.

    Raises:
        TaskError: no column, no unit, lengths that differ, or values that are no numbers.
        NonFiniteError: a column holds NaN or infinity.
    """

    columns: Mapping[str, Array]
    group: Array | None = None
    given: frozenset[str] = GIVEN

    def __post_init__(self) -> None:
        columns = {str(name): _checked(str(name), values) for name, values in self.columns.items()}
        if not columns:
            raise TaskError("outcomes hold no column; give at least one, such as score and target")
        lengths = {name: len(values) for name, values in columns.items()}
        if self.group is not None:
            object.__setattr__(self, "group", _codes(self.group))
            lengths[GROUP] = len(np.asarray(self.group))
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise TaskError(f"columns of outcomes must have one row a unit; their lengths differ: {found}")
        if not next(iter(lengths.values())):
            raise TaskError("outcomes hold no unit: the split is empty; give it rows or choose another split")
        object.__setattr__(self, "columns", columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Array:
        """Return a column, or the group under its name. Raises TaskError if it is absent."""
        values = self.group if name == GROUP else self.columns.get(name)
        if values is None:
            raise TaskError(f"the judge gives no column {name!r}; it gives {', '.join(self.names)}")
        return values

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns, the group's last."""
        return (*self.columns, *(() if self.group is None else (GROUP,)))

    @property
    def units(self) -> dict[str, Array]:
        """What the data give: the columns that no model changes, and the group."""
        found = {name: values for name, values in self.columns.items() if name in self.given}
        return found if self.group is None else {**found, GROUP: self.group}

    @property
    def made(self) -> dict[str, Array]:
        """What the model made: the columns that the data do not give."""
        return {name: values for name, values in self.columns.items() if name not in self.given}

    @property
    def digest(self) -> str:
        """SHA-256 of the number of units and of what the data give."""
        digest = hashlib.sha256(str(len(self)).encode())
        for name, values in sorted(self.units.items()):
            digest.update(f"{name}{values.dtype}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def same_units(self, other: Outcomes) -> bool:
        """Say whether both were made on the same units in the same order, as far as the data's columns tell."""
        return not self._unlike(other)

    def check_same_units(self, other: Outcomes) -> None:
        """Refuse to pair outcomes of different units. Raises TaskError naming the first column that differs."""
        reason = self._unlike(other)
        if reason:
            raise TaskError(
                f"two passes over the test split gave different units ({reason}), so that no pair can be compared; "
                "let the task give the same rows in the same order at every pass"
            )

    def _unlike(self, other: Outcomes) -> str:
        if len(self) != len(other):
            return f"{len(self)} and {len(other)}"
        mine, theirs = self.units, other.units
        if set(mine) != set(theirs):
            return f"columns {', '.join(sorted(mine)) or 'none'} and {', '.join(sorted(theirs)) or 'none'}"
        for name, values in mine.items():
            if not np.array_equal(values, theirs[name]):
                return f"column {name!r} differs"
        return ""


def _checked(name: str, values: Array) -> Array:
    array = np.asarray(values)
    if "/" in name or name == GROUP:
        raise TaskError(f"no column may be called {name!r}: names hold no slash, and the group is given apart")
    if array.ndim == 0:
        raise TaskError(f"column {name!r} is one number; give one row a unit")
    if array.dtype.kind not in "biuf":
        raise TaskError(f"column {name!r} holds {array.dtype}; outcomes are numbers or truth values")
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        bad = array.size - int(np.count_nonzero(finite))
        raise NonFiniteError(f"NaN or infinity in {bad} of {array.size} values of the column {name!r} of the outcomes")
    return array


def _codes(group: Array) -> Array:
    """Return integers that number the sorted distinct values of the group."""
    array = np.asarray(group)
    if array.ndim != 1 or array.dtype.kind not in "biuUS":
        raise TaskError(f"group has shape {array.shape} and dtype {array.dtype}; give one integer or string a unit")
    return np.unique(array, return_inverse=True)[1].reshape(-1).astype(np.int64)
