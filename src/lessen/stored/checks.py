"""Checks of the sizes that a stored module is asked to have, made before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lessen.stored.fields import Segment

MAX_SIDE = 2**40
MAX_ELEMENTS = 2**42


def whole(name: str, value: Any, low: int = 0, high: int = MAX_SIDE) -> int:
    """Return `value` if it is an integer in [low, high].

    Raises:
        TypeError: not an integer (a bool is not one).
        ValueError: outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, found {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low} and {high}, found {value}")
    return value


def number(name: str, value: Any) -> float:
    """Return `value` if it is a finite number.

    Raises:
        TypeError: not a number (a bool is none).
        ValueError: NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, found {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, found {value!r}")
    return float(value)


def row_index(name: str, value: Any, rows: int) -> int | None:
    """Return None or a row number below `rows`. Raises TypeError or ValueError."""
    return None if value is None else whole(name, value, 0, rows - 1)


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """Return `value` if it is one of `allowed`. Raises ValueError."""
    if not any(type(value) is type(item) and value == item for item in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, found {value!r}")
    return value


def elements(what: str, *sides: int) -> int:
    """Return the product of `sides`, refusing what no machine holds. Raises ValueError."""
    product = math.prod(sides)
    if product > MAX_ELEMENTS:
        raise ValueError(f"{what} of {' x '.join(map(str, sides))} values is larger than {MAX_ELEMENTS}")
    return product


def segments(value: Any, rows: int) -> tuple[Segment, ...]:
    """Return field segments from their JSON form, ordered, apart and inside `rows`. Raises TypeError or ValueError."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"segments must be a list of [name, start, rows], found {value!r}")
    result, end = [], 0
    for item in value:
        if not isinstance(item, (list, tuple)) or len(item) != 3 or not isinstance(item[0], str):
            raise TypeError(f"a segment must be [name, start, rows], found {item!r}")
        start = whole("segment start", item[1], 0, rows)
        count = whole("segment rows", item[2], 1, rows)
        if start < end or start + count > rows:
            raise ValueError(f"segment {item[0]!r} overlaps its neighbour or leaves the {rows} rows of the table")
        end = start + count
        result.append(Segment(item[0], start, count))
    return tuple(result)


def within(name: str, values: Tensor, low: int, high: int) -> None:
    """Refuse integers [*] outside [low, high]. Raises ValueError with the first bound that is crossed."""
    if not values.numel():
        return
    least, most = (int(end) for end in values.aminmax())
    if least < low or most > high:
        raise ValueError(f"{name} holds {least if least < low else most}, outside {low} to {high}")


def equal(name: str, found: Tensor, expected: Tensor) -> None:
    """Refuse a tensor of counts that differs from what the other tensors say. Raises ValueError."""
    if not torch.equal(found, expected.to(found.dtype)):
        raise ValueError(f"{name} does not say where the rows lie")
