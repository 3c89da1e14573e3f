"""Paired timing: reference and compact model alternate in one process, with pinned threads, and the ratio is reported.

Absolute milliseconds drift with the machine; the ratio of two calls made a moment apart does not.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lessen.errors import MAX_THREADS, ConfigError

Call = Callable[[Any], Any]
FEWEST = 8
"""Pairs that a median and its interval need, however slow the calls are."""


@dataclass(frozen=True)
class Latency:
    """Result of a paired timing; milliseconds are of one call on one batch."""

    p50_ms: float
    p95_ms: float
    reference_p50_ms: float
    reference_p95_ms: float
    ratio: float
    """Median over rounds of compact time / reference time; below 1 is faster."""
    ratio_low: float
    ratio_high: float
    """95 % interval of that median, from order statistics."""
    batch_examples: int
    rounds: int
    threads: int

    @property
    def throughput_per_s(self) -> float:
        """Examples a second of the compact model at its median time."""
        return self.batch_examples / self.p50_ms * 1000.0


def check_threads(threads: Any) -> None:
    """Refuse numbers of threads that torch does not take, or dies of. Raises ConfigError."""
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"threads = {threads!s:.40} is not accepted: give a whole number from 1 to {MAX_THREADS}")


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Run a block with torch's operator threads set to `threads`, garbage collection paused, then restore both."""
    check_threads(threads)
    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()


def compare_latency(
    reference: Call,
    compact: Call,
    inputs: Sequence[Any],
    *,
    rounds: int = 40,
    warmup: int = 4,
    threads: int = 1,
    batch_examples: int = 1,
    seconds: float | None = None,
) -> Latency:
    """Time two callables in alternation; who goes first changes every round, and inputs rotate so caches stay honest.

    Args:
        inputs: batches that both callables are given, one a round.
        rounds: pairs that count; `warmup` pairs before them do not.
        seconds: after so many no pair is begun, once `FEWEST` count; None times all rounds.
    """
    times, settle = np.empty((rounds, 2)), _settler()
    began = time.perf_counter()
    with pinned_threads(threads), torch.no_grad():
        for number in range(-warmup, rounds):
            spent = seconds is not None and time.perf_counter() - began > seconds
            if spent and number >= FEWEST and number % 2 == 0:  # both orders as often
                rounds, times = number, times[:number]
                break
            batch = inputs[number % len(inputs)]
            order = ((0, reference), (1, compact))
            pair = [0.0, 0.0]
            for which, call in order if number % 2 else reversed(order):
                settle()
                start = time.perf_counter()
                call(batch)
                settle()
                pair[which] = time.perf_counter() - start
            if number >= 0:
                times[number] = pair
    milliseconds = times * 1000.0
    ratios = np.sort(times[:, 1] / times[:, 0])
    low, high = _median_ranks(rounds)
    return Latency(
        p50_ms=float(np.median(milliseconds[:, 1])),
        p95_ms=float(np.quantile(milliseconds[:, 1], 0.95)),
        reference_p50_ms=float(np.median(milliseconds[:, 0])),
        reference_p95_ms=float(np.quantile(milliseconds[:, 0], 0.95)),
        ratio=float(np.median(ratios)),
        ratio_low=float(ratios[low]),
        ratio_high=float(ratios[high]),
        batch_examples=batch_examples,
        rounds=rounds,
        threads=threads,
    )


def _settler() -> Callable[[], None]:
    """Return what waits until a device has done what it was given, asked once: the CPU is never behind."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # untyped in torch
        return torch.cuda.synchronize
    return torch.mps.synchronize if torch.backends.mps.is_available() else lambda: None


def _median_ranks(count: int) -> tuple[int, int]:
    """Return the ranks that bound the median of `count` samples with 95 % confidence (normal approximation)."""
    half = 1.96 * math.sqrt(count) / 2.0
    return max(0, math.floor(count / 2.0 - half)), min(count - 1, math.ceil(count / 2.0 + half) - 1)
