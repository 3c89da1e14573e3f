"""The task `series-waves`: synthetic series whose classes differ by the frequency in a few of many channels."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from pydantic import Field

from lessen.errors import TaskError
from lessen.task import Split, TaskOptions
from lessen.tasks.series.base import Series, SeriesTask

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class WavesOptions(TaskOptions):
    """What a study may set under `task:`."""

    rows: int = Field(450, ge=30, le=10**6, description="series in all: a third each to train, validation and test")
    channels: int = Field(4, ge=1, le=1000, description="channels of a series")
    told: int = Field(1, ge=1, le=1000, description="channels in which the classes differ; the others are noise")
    length: int = Field(64, ge=16, le=10**5, description="samples of a series")
    classes: int = Field(4, ge=2, le=100, description="classes")
    noise: float = Field(1.5, gt=0, le=100, description="deviation of the noise; waves have amplitude 1")
    seed: int = Field(0, ge=0, le=2**31, description="seed of the series")


class WavesTask(SeriesTask):
    """Class c is a wave of frequency 0.2 + 0.15 c, of random phase, in the first `told` channels."""

    name = "series-waves"
    Options = WavesOptions

    def __init__(self, options: WavesOptions | None = None) -> None:
        self.options = options or WavesOptions()
        if self.options.told > self.options.channels:
            raise TaskError(f"told: {self.options.told} of {self.options.channels} channels cannot differ")

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.options.classes

    @cached_property
    def _made(self) -> Series:
        given = self.options
        draw = torch.Generator().manual_seed(given.seed)
        classes = torch.arange(given.rows) % given.classes
        classes = classes[torch.randperm(given.rows, generator=draw)]
        values = given.noise * torch.randn(given.rows, given.channels, given.length, generator=draw)
        phase = 2 * torch.pi * torch.rand(given.rows, given.told, 1, generator=draw)
        frequency = 0.2 + 0.15 * classes[:, None, None]
        values[:, : given.told] += torch.sin(frequency * torch.arange(given.length) + phase)
        return Series(values, classes)

    def split(self, name: Split) -> Series:
        """Return a third of the series. Raises TaskError for a name that is none."""
        if name not in SPLITS:
            raise TaskError(f"task {self.name!r} has no split {name!r}; allowed: {', '.join(SPLITS)}")
        bounds = [self.options.rows * place // len(SPLITS) for place in range(len(SPLITS) + 1)]
        own = slice(bounds[SPLITS.index(name)], bounds[SPLITS.index(name) + 1])
        return Series(self._made.values[own], self._made.classes[own])

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump()}
