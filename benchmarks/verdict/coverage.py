"""How often does the 95 % interval hold the truth, and how often is a verdict wrong? Truth exactly at the margin.

    python -m benchmarks.verdict.coverage [--trials 2000] [--only auc] [--out benchmarks/results]

Each trial draws a test set, models of up to 20 seeds and their compact forms, whose true loss is the margin plus a draw
of each seed, and judges by the functions of lessen. `ratio` is the error of a loss over the shared examples by the
spread of the losses over seeds. "own" seeds answer the examples by noise of their own and differ by nothing else; "few"
is a small or lumpy test set. Writes verdict_coverage.json; `python -m benchmarks.verdict.table` shows it in the docs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from lessen.environment import environment
from lessen.frontier.verdict import UNKNOWN, WITHIN, WORSE, difference_over_seeds, judge, paired_difference
from lessen.metrics import ACCURACY, AUC, Metric, Outcomes
from lessen.metrics.base import SumMetric
from lessen.metrics.intervals import Z
from lessen.metrics.language import Perplexity

RESULTS = Path(__file__).parents[1] / "results"
SEEDS = (1, 2, 3, 5, 10, 20)
RATIOS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
NO_EXAMPLE_ERROR = 0.1
"""Ratio that stands for 0: a hundredth of the variance of one seed; some error over examples there always is."""
NORMAL = NormalDist()
Pair = tuple[Outcomes, Outcomes]


class BitsOfPixels(SumMetric):
    """A ratio of sums, such as bits per pixel."""

    name = "ratio of sums"
    higher_is_better = False
    reads = ("bits", "pixels")

    def sums(self, outcomes: Outcomes) -> Any:
        return np.stack([outcomes["bits"], outcomes["pixels"]], axis=1)

    def of_sums(self, totals: Any) -> Any:
        return totals[..., 0] / totals[..., 1]


@dataclass(frozen=True)
class World:
    """A kind of test set: `draw(generator, losses, own)` gives (reference, compact) of each seed's true loss."""

    metric: Metric
    margin: float
    draw: Callable[[np.random.Generator, np.ndarray, bool], Iterator[Pair]]


def clicks(n: int, noise: float) -> Callable[..., Iterator[Pair]]:
    def draw(g: np.random.Generator, losses: np.ndarray, own: bool) -> Iterator[Pair]:
        target = (np.arange(n) < n // 2).astype(np.float32)
        first, second = g.normal(size=(2, n))
        apart = math.sqrt(2.0) * NORMAL.inv_cdf(0.8)
        for loss in losses:
            if own:
                second = g.normal(size=n)
            compact = math.sqrt(2.0) * NORMAL.inv_cdf(0.8 - loss)
            scores = apart * target + first
            moved = compact * target + math.sqrt(1 - noise**2) * first + noise * second
            yield Outcomes({"score": scores, "target": target}), Outcomes({"score": moved, "target": target})

    return draw


def answers(n: int, right: float, noise: float) -> Callable[..., Iterator[Pair]]:
    """Right answers are lost at the rate that the true loss asks for; a share `noise` of wrong ones is gained."""

    def draw(g: np.random.Generator, losses: np.ndarray, own: bool) -> Iterator[Pair]:
        before, chance = g.random(n) < right, g.random(n)
        zero = np.zeros(n, np.int64)
        for loss in losses:
            if own:
                chance = g.random(n)
            gained = noise + max(0.0, -loss - noise * (1 - right)) / (1 - right)
            lost = (loss + gained * (1 - right)) / right
            after = np.where(before, chance >= lost, chance < gained)
            pair = [Outcomes({"score": np.stack([hit, ~hit], axis=1), "target": zero}) for hit in (before, after)]
            yield pair[0], pair[1]

    return draw


def documents(n: int, noise: float) -> Callable[..., Iterator[Pair]]:
    def draw(g: np.random.Generator, losses: np.ndarray, own: bool) -> Iterator[Pair]:
        tokens = np.ceil(g.lognormal(5.0, 0.7, n))
        before, moved, base = tokens * (3.0 + 0.4 * g.normal(size=n)), g.normal(size=n), math.exp(3.0)
        for loss in losses:
            if own:
                moved = g.normal(size=n)
            after = before + tokens * (math.log((base + loss) / base) + noise * moved)
            pair = [Outcomes({"nll": nll, "tokens": tokens}) for nll in (before, after)]
            yield pair[0], pair[1]

    return draw


def pictures(n: int, noise: float) -> Callable[..., Iterator[Pair]]:
    def draw(g: np.random.Generator, losses: np.ndarray, own: bool) -> Iterator[Pair]:
        pixels = np.ceil(g.lognormal(10.0, 0.5, n))
        before, moved = pixels * (1.0 + g.gamma(4.0, 0.2, n)), g.normal(size=n)
        for loss in losses:
            if own:
                moved = g.normal(size=n)
            pair = [Outcomes({"bits": b, "pixels": pixels}) for b in (before, before + pixels * (loss + noise * moved))]
            yield pair[0], pair[1]

    return draw


WORLDS = {
    "auc": World(AUC, 0.02, clicks(800, 0.25)),
    "accuracy": World(ACCURACY, 0.03, answers(3000, 0.7, 0.05)),
    "perplexity": World(Perplexity(), 0.4, documents(300, 0.05)),
    "ratio of sums": World(BitsOfPixels(), 0.05, pictures(200, 0.2)),
}
FEW = {
    "auc of 60": World(AUC, 0.05, clicks(60, 0.3)),
    "accuracy of 60": World(ACCURACY, 0.1, answers(60, 0.8, 0.1)),
    "accuracy 0.99, 2 of 400 flip": World(ACCURACY, 0.005, answers(400, 0.99, 0.0)),
    "accuracy 0.99, 4 of 400 flip": World(ACCURACY, 0.01, answers(400, 0.99, 0.0)),
    "accuracy 0.95, 6 lost, 2 gained": World(ACCURACY, 0.01, answers(400, 0.95, 0.1)),
    "perplexity of 30": World(Perplexity(), 0.4, documents(30, 0.05)),
}


def example_error(world: World) -> float:
    """Return the standard deviation of a loss over test sets, from 400 of them."""
    g, found = np.random.default_rng(1), []
    for _ in range(400):
        before, after = next(world.draw(g, np.array([world.margin]), True))
        found.append(world.metric(after) - world.metric(before))
    return float(np.std(found))


def cell(world: World, spread: float, trials: int, own: bool, seeds: tuple[int, ...] = SEEDS) -> list[dict[str, Any]]:
    """Return coverage and wrong verdicts for each number of seeds, of models whose true losses spread by `spread`."""
    g = np.random.default_rng(7)
    counts = {k: {"covered": 0, "within": 0, "worse": 0, "unknown": 0, "width": 0.0, "bounded": 0} for k in seeds}
    up = world.metric.higher_is_better
    for _ in range(trials):
        losses = world.margin + spread * g.normal(size=max(seeds))
        before, after, deviations = {}, {}, []
        for seed, (one, two) in enumerate(world.draw(g, losses, own)):
            before[seed], after[seed] = world.metric.jackknife(one), world.metric.jackknife(two)
            deviations.append(
                sum(
                    float((values[1:] - values[1:].mean()).std()) * math.sqrt(len(values) - 1)
                    for values in (before[seed], after[seed])
                )
            )
        # with one seed the interval speaks of that seed's own loss
        smallest = world.metric.resolution(one)
        for k, count in counts.items():
            truth = losses[0] if k == 1 else world.margin
            found = paired_difference({s: before[s] for s in range(k)}, after, len(one), up, smallest)
            _, low, high = found.loss
            verdict = judge(found, float(truth), smallest).verdict
            count["covered"] += low is not None and low <= truth <= high
            count["within"] += verdict == WITHIN
            count["worse"] += verdict == WORSE
            count["unknown"] += verdict == UNKNOWN
            count["width"] += (high - low) / trials if low is not None else 0.0
            bounded = difference_over_seeds(found.per_seed, deviations[:k], up).loss
            count["bounded"] += bounded[1] <= truth <= bounded[2]
    shares = ("covered", "within", "worse", "unknown", "bounded")
    return [
        {"seeds": k, "width": count["width"], **{name: count[name] / trials for name in shares}}
        for k, count in counts.items()
    ]


def study(trials: int, only: str) -> list[dict[str, Any]]:
    rows = []
    for name, world in WORLDS.items():
        if only not in name:
            continue
        error = example_error(world)
        for ratio in RATIOS:
            found = cell(world, error / (ratio or NO_EXAMPLE_ERROR), trials, own=False)
            rows += [{"metric": name, "ratio": ratio, **row} for row in found]
        rows += [{"metric": name, "ratio": "own", **row} for row in cell(world, 0.0, trials, own=True)]
        print(f"{name}: done", flush=True)
    for name, world in FEW.items():
        if only in name:
            rows += [{"metric": name, "ratio": "few", **row} for row in cell(world, 0.0, trials, True, (1, 2, 3))]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--only", default="", help="part of a metric's name")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    start = time.perf_counter()
    rows = study(given.trials, given.only)
    record = {
        "command": f"python -m benchmarks.verdict.coverage --trials {given.trials}",
        "trials": given.trials,
        "seconds": time.perf_counter() - start,
        "z": Z,
        "environment": environment(1),
        "rows": rows,
    }
    (given.out / "verdict_coverage.json").write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        told = (f"{name} {row[name]:.3f}" for name in ("covered", "within", "worse", "width", "bounded"))
        print(f"{row['metric']:32} {row['ratio']!s:>5} {row['seeds']:>3} seeds ", *told)


if __name__ == "__main__":
    main()
