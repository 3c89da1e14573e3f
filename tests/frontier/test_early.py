"""Looks before the last seed: false verdicts stay rare however often one looks, and clear losers are told early."""

from __future__ import annotations

import numpy as np
import pytest

from lessen.frontier.early import early_verdict
from lessen.frontier.verdict import UNKNOWN, WITHIN, WORSE, judge, paired_difference
from lessen.metrics import MeanMetric, Outcomes


class Value(MeanMetric):
    name, reads = "value-of-early-tests", ("right",)

    def each(self, outcomes):
        return outcomes["right"].astype(np.float64)


def looks(g, loss: float, spread: float, seeds: int = 6, units: int = 120, margin: float = 0.02):
    """Return the seeds after which a study stops and its verdict."""
    shared = 0.05 * g.normal(size=units)
    reference, compact = {}, {}
    for seed in range(seeds):
        moved = loss + spread * g.normal() + shared + 0.05 * g.normal(size=units)
        base = g.normal(size=units)
        reference[seed] = Value().jackknife(Outcomes({"right": base}))
        compact[seed] = Value().jackknife(Outcomes({"right": base - moved}))
        if seed >= 1:
            difference = paired_difference(dict(reference), dict(compact), units)
            last = seed == seeds - 1
            found = judge(difference, margin) if last else early_verdict(difference, margin, seeds)
            if found.verdict != UNKNOWN or last:
                return seed + 1, found.verdict
    raise AssertionError


@pytest.mark.parametrize("spread", [0.0, 0.01])
def test_false_verdicts_are_rare_at_the_margin(spread):
    g = np.random.default_rng(1)
    found = [looks(g, 0.02, spread) for _ in range(150)]
    assert sum(verdict == WORSE for _, verdict in found) <= 0.05 * 150 + 3
    assert sum(verdict not in (WORSE, UNKNOWN) for _, verdict in found) <= 0.05 * 150 + 3


def test_clear_losers_and_clear_winners_stop_early():
    g = np.random.default_rng(2)
    worse = [looks(g, 0.3, 0.005) for _ in range(30)]
    assert {verdict for _, verdict in worse} == {WORSE}
    assert np.mean([seeds for seeds, _ in worse]) < 5
    kept = [looks(g, 0.0, 0.0001) for _ in range(30)]
    assert all(verdict in (WITHIN, "better", UNKNOWN) for _, verdict in kept)


def test_no_look_with_one_seed_or_at_the_last():
    g = np.random.default_rng(3)
    values = {seed: Value().jackknife(Outcomes({"right": g.normal(size=50)})) for seed in range(3)}
    after = {seed: each - 5.0 for seed, each in values.items()}
    assert early_verdict(paired_difference({0: values[0]}, {0: after[0]}, 50), 0.1, 3).verdict == UNKNOWN
    assert early_verdict(paired_difference(values, after, 50), 0.1, 3).verdict == UNKNOWN
    two = paired_difference({s: values[s] for s in (0, 1)}, after, 50)
    assert early_verdict(two, 0.1, 3, doubt="broken").verdict == UNKNOWN
    assert early_verdict(two, 0.1, 3).verdict == WORSE
