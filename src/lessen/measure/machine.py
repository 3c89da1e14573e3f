"""What operations take on this machine, measured once and kept: `lessen doctor --measure`.

products, kernels   a grid over rows, inputs and outputs, twice: weights in the caches, and fetched from memory
everything else     seconds = a call + multiply-adds / rate + bytes / bandwidth, fitted to some sizes

The seconds of a forward are the sum over its operations (`measure.work`); what lies between them is not in the sum, so
that a forecast sets the sum of a compact model beside that of the reference, whose time is known.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lessen.data.cache import cache_folder
from lessen.environment import environment
from lessen.errors import LessenError
from lessen.files import atomic_write, dump_json, parse_json, read_checked
from lessen.log import SILENT, Log
from lessen.measure import samples
from lessen.measure.latency import pinned_threads
from lessen.measure.work import Operation, Work

VERSION = 2
"""Of what is measured; a file of another one is measured again."""
FEWEST, LEAST_SECONDS = 5, 0.004
"""Calls of a timing, and seconds that it takes at least."""
SHORT = 1e-4
"""Seconds below which calls are timed several at a time, so that reading the clock counts little."""
FLUSHED = 48 << 20
"""Bytes that are gone through to empty the caches."""
FEW_ROWS = 8
"""Rows up to which a product's time hangs on where its weights lie; more rows use each weight too often."""
NEAR, FAR = 2 << 20, 48 << 20
"""Bytes of a model's weights up to which they stay in the caches, and from which each call fetches them."""


@dataclass(frozen=True)
class Grid:
    """Seconds of one kind of product over (rows, inputs, outputs) or of a lookup over (ids, width)."""

    axes: tuple[tuple[int, ...], ...]
    near: np.ndarray
    """Logarithms of seconds, an axis each, weights in the caches."""
    far: np.ndarray

    def seconds(self, sizes: tuple[int, ...], away: float) -> float:
        """Return the seconds of a call; `away` 0 finds the weights in the caches, 1 in memory."""
        own, other = _between(self.axes, self.near, sizes), _between(self.axes, self.far, sizes)
        return float(np.exp((1 - away) * own + away * max(own, other)))


@dataclass(frozen=True)
class Machine:
    """The figures of a machine."""

    grids: Mapping[str, Grid]
    lines: Mapping[str, tuple[float, float, float]]
    """Seconds of a call, of a multiply-add and of a byte, by kind."""

    def unknown(self, work: Work) -> list[str]:
        """Return the kinds in `work` that were not measured."""
        return sorted({one.kind for one in work.operations} - set(self.grids) - set(self.lines))

    def seconds(self, work: Work, beside: int = 0) -> float:
        """Return the seconds of all operations of a forward.

        Args:
            beside: bytes of weights of another model that takes turns with this one, and shares the caches.

        Raises:
            KeyError: a kind that was not measured.
        """
        weights = max(work.weight_bytes + beside, 1)
        away = float(np.clip(np.log(weights / NEAR) / np.log(FAR / NEAR), 0.0, 1.0))
        return sum(count * self._seconds(one, away) for one, count in work.operations.items())

    def _seconds(self, one: Operation, away: float) -> float:
        if one.kind in self.grids:
            return self.grids[one.kind].seconds(one.sizes, away)
        call, mac, byte = self.lines[one.kind]
        return call + mac * one.macs + byte * one.bytes


def _between(axes: tuple[tuple[int, ...], ...], values: np.ndarray, sizes: tuple[int, ...]) -> float:
    """Return the value between the points of a grid, linear in the logarithm of each size; beyond it, as its edge goes.

    Beyond the grid a size never costs less than it does at the edge, nor more than in proportion.
    """
    for axis, size in zip(axes, sizes, strict=True):
        points, at = np.log(np.asarray(axis, dtype=np.float64)), np.log(max(size, 1))
        right = int(np.clip(np.searchsorted(points, at), 1, len(points) - 1))
        slope = (values[right] - values[right - 1]) / (points[right] - points[right - 1])
        if not points[0] <= at <= points[-1]:
            slope = np.clip(slope, 0.0, 1.0)
            right = right if at > points[-1] else 0
            values = values[right] + slope * (at - points[right])
        else:
            values = values[right - 1] + slope * (at - points[right - 1])
    return float(values)


# -- measuring -----------------------------------------------------------------------------------------------------
def measure(threads: int = 1, log: Log = SILENT) -> Machine:
    """Time samples of every kind of operation on this machine; about a minute."""
    grids: dict[str, Grid] = {}
    lines: dict[str, tuple[float, float, float]] = {}
    with pinned_threads(threads), torch.no_grad():
        known = samples.grids()
        for number, (name, axes, make) in enumerate(known):
            log.progress("measuring kernels", number, len(known))
            grids[name] = _grid(axes, make)
        log.progress("measuring kernels", len(known), len(known))
        for name, calls in samples.lines().items():
            lines[name] = _line(calls)
    return Machine(grids, lines)


def _grid(axes: tuple[tuple[int, ...], ...], make: samples.Make) -> Grid:
    shape = tuple(map(len, axes))
    near, far = np.empty(shape), np.empty(shape)
    for place in np.ndindex(*shape[1:]):
        calls = make(*(axis[at] for axis, at in zip(axes[1:], place, strict=True)))
        for row, rows in enumerate(axes[0]):
            call = calls(rows)
            near[(row, *place)] = np.log(timed(call))
            few = len(axes) == 2 or rows <= FEW_ROWS
            far[(row, *place)] = np.log(timed(call, flush=True)) if few else near[(row, *place)]
    return Grid(axes, near, far)


def _line(calls: list[tuple[int, int, Callable[[], Any]]]) -> tuple[float, float, float]:
    """Fit a call, a multiply-add and a byte to samples, every sample's error weighed by its own seconds."""
    found = np.array([timed(call) for _, _, call in calls])
    rows = np.array([[1.0, macs, moved] for macs, moved, _ in calls])
    scale = rows.max(0)
    scale[scale == 0] = 1.0
    call, mac, byte = (_not_negative((rows / scale) / found[:, None]) / scale).tolist()
    return call, mac, byte


def _not_negative(rows: np.ndarray) -> np.ndarray:
    """Return the weights [columns], none negative, with which `rows` come nearest to ones in squares."""
    best, least = np.zeros(rows.shape[1]), np.inf
    for count in range(1, rows.shape[1] + 1):
        for columns in itertools.combinations(range(rows.shape[1]), count):
            weights = np.linalg.lstsq(rows[:, columns], np.ones(len(rows)), rcond=None)[0]
            error = float(((rows[:, columns] @ weights - 1) ** 2).sum())
            if (weights >= 0).all() and error < least:
                best, least = np.zeros(rows.shape[1]), error
                best[list(columns)] = weights
    return best


def timed(call: Callable[[], Any], flush: bool = False) -> float:
    """Return the seconds of a call: the first quartile of some, for what disturbs a call only makes it longer.

    With one thread the processor's time is taken, which other programs' turns do not lengthen. `flush` empties the
    caches before every call.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    start = clock()
    call()
    inner = 1 if flush else max(1, int(SHORT / max(clock() - start, 1e-6)))
    times: list[float] = []
    until = clock() + LEAST_SECONDS
    while len(times) < FEWEST or (not flush and clock() < until):
        if flush:
            _buffer().add_(1)
        start = clock()
        for _ in range(inner):
            call()
        times.append((clock() - start) / inner)
    return float(np.quantile(times, 0.25))


_flushing: list[torch.Tensor] = []


def _buffer() -> torch.Tensor:
    if not _flushing:
        _flushing.append(torch.zeros(FLUSHED, dtype=torch.uint8))
    return _flushing[0]


# -- keeping -------------------------------------------------------------------------------------------------------
def place_of(threads: int = 1) -> Path:
    """Return the file for this machine with these threads and versions."""
    found = environment()
    facts = {
        "version": VERSION,
        "threads": threads,
        **{name: found[name] for name in ("processor", "cores", "capability", "packages")},
        "kernels": samples.kernels(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / "machine" / f"operations-{digest[:24]}.json"


def save(place: Path, machine: Machine) -> None:
    """Store the figures. Raises OutputError when the cache cannot be written."""
    grids = {
        name: {"axes": grid.axes, "near": grid.near.round(4).tolist(), "far": grid.far.round(4).tolist()}
        for name, grid in machine.grids.items()
    }
    atomic_write(place, dump_json({"grids": grids, "lines": machine.lines}))


def load(place: Path) -> Machine | None:
    """Return stored figures, or None where there are none or they cannot be read; then they are measured again."""
    try:
        value = parse_json(read_checked(place), str(place))
        return _read(value)
    except (OSError, LessenError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _read(value: Any) -> Machine:
    grids = {}
    for name, told in value["grids"].items():
        axes = tuple(tuple(int(one) for one in axis) for axis in told["axes"])
        near, far = (np.asarray(told[key], dtype=np.float64) for key in ("near", "far"))
        if not near.shape == far.shape == tuple(map(len, axes)) or not np.isfinite([near, far]).all():
            raise ValueError(name)
        grids[str(name)] = Grid(axes, near, far)
    lines = {str(name): (float(a), float(b), float(c)) for name, (a, b, c) in value["lines"].items()}
    return Machine(grids, lines)


def known(threads: int = 1) -> Machine | None:
    """Return the figures of this machine where `lessen doctor --measure` has left them."""
    return load(place_of(threads))
