"""What a forward pass with k new tokens costs on this machine, measured once for a model."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lessen.errors import ConfigError

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)

_SLOW_PASS = 0.5
_CHECKED, _TOLERANCE = (4, 16), 1.4


@dataclass(frozen=True)
class CostCurve:
    """Seconds of one forward pass by its number of new tokens, straight between and beyond the measured sizes."""

    sizes: tuple[int, ...]
    times: tuple[float, ...]
    packed_rows: tuple[int, int] | None = None
    """Passes of how many rows ran on packed weights when it was measured: (0, 0) for none, None where unknown."""

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.times) or list(self.sizes) != sorted(set(self.sizes)):
            raise ConfigError("a cost curve needs rising sizes and one time for each")
        if self.sizes[0] < 1 or min(self.times) <= 0.0:
            raise ConfigError("a cost curve needs sizes of at least 1 and times above 0")

    def seconds(self, rows: int) -> float:
        """Return the seconds of a pass with `rows` new tokens."""
        sizes, times = self.sizes, self.times
        if len(sizes) == 1:
            return times[0]
        right = min(max(1, bisect.bisect_left(sizes, rows)), len(sizes) - 1)
        left = right - 1
        slope = (times[right] - times[left]) / (sizes[right] - sizes[left])
        if rows > sizes[-1]:
            slope = max(slope, times[-1] / sizes[-1] * 0.5)
        return max(times[left] + slope * (rows - sizes[left]), min(times))

    def relative(self) -> dict[int, float]:
        """Return the cost of each measured size relative to a pass with one new token."""
        first = self.seconds(1)
        return {size: round(seconds / first, 3) for size, seconds in zip(self.sizes, self.times, strict=True)}


def measure_costs(
    run: Callable[[int], object],
    sizes: Sequence[int] = SIZES,
    repeats: int = 5,
    limit_seconds: float = 20.0,
    clock: Callable[[], float] = time.process_time,
    packed_rows: tuple[int, int] | None = None,
) -> CostCurve:
    """Time `run(k)` for every size, interleaved, and keep the quickest of `repeats` (at least one; see the limit).

    Other work on the machine only ever adds time, so the quickest call is the one that measures the model. The default
    clock counts processor time, which waiting for a busy machine does not distort; only ratios matter to a plan. Pass a
    clock that waits for another device if the model is on one. Only powers of two are timed where one pass takes long.
    """
    begun = clock()
    run(sizes[0])
    if clock() - begun > _SLOW_PASS:
        sizes = [size for size in sizes if size & (size - 1) == 0] or sizes
    best = dict.fromkeys(sizes, float("inf"))
    for repeat in range(repeats):
        if repeat and clock() - begun > limit_seconds:
            break
        for size in sizes:
            start = clock()
            run(size)
            best[size] = min(best[size], max(clock() - start, 1e-9))
    return CostCurve(tuple(sizes), tuple(best[size] for size in sizes), packed_rows)


def costs_hold(
    curve: CostCurve, run: Callable[[int], object], repeats: int = 5, clock: Callable[[], float] = time.process_time
) -> bool:
    """Return whether passes now have the relative costs of the curve, within a factor of 1.4.

    Only ratios matter to a plan, and the quickest of a few calls has little noise: a curve that is off by more was
    measured under other conditions (other threads, another neighbour on the machine, another clock rate).
    """
    sizes = [size for size in _CHECKED if size in curve.sizes]
    found = measure_costs(run, [1, *sizes], repeats, clock=clock).relative()
    return all(1 / _TOLERANCE < found[size] / curve.relative()[size] < _TOLERANCE for size in sizes)
