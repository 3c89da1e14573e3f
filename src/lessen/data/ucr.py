"""Sets of the UCR and UEA archives of time series, read from `.ts` files inside the package `aeon`.

Each line after `@data` is one series: its channels apart by `:`, their samples by `,`, and the class last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lessen.data.catalogue import read
from lessen.errors import DataError
from lessen.log import SILENT, Log

SETS = (
    "ACSF1",
    "ArrowHead",
    "BasicMotions",
    "GunPoint",
    "ItalyPowerDemand",
    "JapaneseVowels",
    "OSULeaf",
    "PickupGestureWiimoteZ",
)
"""Classification sets that the package holds, train and test."""


class Labelled(NamedTuple):
    """One split of a set."""

    values: NDArray[np.float32]
    """[n, channels, length]"""
    labels: list[str]
    padded: bool
    """Series differ in length: zeros fill the shorter ones."""


def load_ucr(name: str, log: Log = SILENT) -> tuple[Labelled, Labelled]:
    """Return the train and the test split of a set, both of the length of the longest train series.

    Raises:
        DataError: the package cannot be had, or the file is damaged.
    """
    parts = []
    for split in ("TRAIN", "TEST"):
        member = f"aeon/datasets/data/{name}/{name}_{split}.ts"
        parts.append(parse_ts(read("ucr-series", member, log).decode("utf-8", "replace"), member))
    length = max(len(channel) for series, _ in parts[0] for channel in series)
    train, test = (_joined(part, length) for part in parts)
    return train, test


def parse_ts(text: str, where: str) -> list[tuple[list[NDArray[np.float32]], str]]:
    """Return the series of a `.ts` file as (channels, class). Raises DataError naming the line."""
    _, found, data = text.partition("@data")
    if not found:
        raise DataError(f"{where}: no line @data; is it a .ts file?")
    first = text[: len(text) - len(data)].count("\n") + 1
    result: list[tuple[list[NDArray[np.float32]], str]] = []
    for number, line in enumerate(data.splitlines(), first):
        if not line.strip():
            continue
        *channels, label = line.split(":")
        try:
            values = [np.array(channel.split(","), dtype=np.float32) for channel in channels]
        except ValueError as error:
            raise DataError(f"{where}: line {number}: {error}") from error
        if not values or (result and len(values) != len(result[0][0])):
            raise DataError(
                f"{where}: line {number} has {len(values)} channels, not {len(result[0][0]) if result else 1}"
            )
        if not all(np.isfinite(value).all() for value in values):
            raise DataError(f"{where}: line {number} has missing values; fill them first")
        result.append((values, label.strip()))
    if not result:
        raise DataError(f"{where}: no series after @data")
    return result


def _joined(part: list[tuple[list[NDArray[np.float32]], str]], length: int) -> Labelled:
    """Return equally long series: zeros after the end of the shorter, the longest cut."""
    values = np.zeros((len(part), len(part[0][0]), length), dtype=np.float32)
    lengths = set()
    for row, (channels, _) in enumerate(part):
        for place, channel in enumerate(channels):
            values[row, place, : len(channel)] = channel[:length]
            lengths.add(len(channel))
    return Labelled(values, [label for _, label in part], lengths != {length})
