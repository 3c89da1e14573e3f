"""The task `series-ucr`: sets of the UCR and UEA archives, out of a package that holds eight of them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from pydantic import Field

from lessen.data.ucr import SETS, Labelled, load_ucr
from lessen.errors import ConfigError, TaskError, nearest
from lessen.task import Split, TaskOptions
from lessen.tasks.series.base import Series, SeriesTask


class UcrOptions(TaskOptions):
    """What a study may set under `task:`."""

    dataset: str = Field("GunPoint", description=f"one of {', '.join(SETS)}")
    held_out: float = Field(0.2, gt=0, lt=1, description="share of the published train series held out for validation")


class UcrTask(SeriesTask):
    """Classify the series of one set; the published test split is the test split."""

    name = "series-ucr"
    Options = UcrOptions

    def __init__(self, options: UcrOptions | None = None) -> None:
        self.options = options or UcrOptions()
        if self.options.dataset not in SETS:
            raise ConfigError(
                f"dataset: no set is called {self.options.dataset!r}; {nearest(self.options.dataset, SETS)}"
            )

    @cached_property
    def _data(self) -> tuple[Labelled, Labelled]:
        return load_ucr(self.options.dataset)

    @cached_property
    def _names(self) -> list[str]:
        return sorted({label for part in self._data for label in part.labels})

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self._names)

    @cached_property
    def _held_out(self) -> torch.Tensor:
        """Which train series are held out, bool [n]: evenly spread over the series of each class."""
        labels, share = self._data[0].labels, self.options.held_out
        seen: dict[str, int] = {}
        held = []
        for label in labels:
            seen[label] = seen.get(label, 0) + 1
            held.append(int(seen[label] * share) > int((seen[label] - 1) * share))
        return torch.tensor(held)

    def split(self, name: Split) -> Series:
        """Return a split. Raises TaskError for a name that is none; DataError when the set cannot be had."""
        if name not in ("train", "validation", "test"):
            raise TaskError(f"task {self.name!r} has no split {name!r}; allowed: train, validation, test")
        part = self._data[name == "test"]
        classes = torch.tensor([self._names.index(label) for label in part.labels])
        values = torch.from_numpy(part.values)
        if name == "test":
            return Series(values, classes)
        own = self._held_out if name == "validation" else ~self._held_out
        return Series(values[own], classes[own])

    def notes(self) -> list[str]:
        """Return how series of unequal length were treated."""
        if not any(part.padded for part in self._data):
            return []
        return [f"series of {self.options.dataset} differ in length: zeros fill the shorter, the longest are cut"]

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump()}
