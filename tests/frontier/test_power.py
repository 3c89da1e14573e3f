"""Numbers of test units that a verdict needs: closed forms, and the verdicts themselves by simulation."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from lessen.errors import ConfigError
from lessen.frontier.power import Errors, errors_of, errors_of_flips, power, seeds_needed, units_needed
from lessen.frontier.verdict import WITHIN, WORSE, judge, paired_difference
from lessen.metrics import MeanMetric, Outcomes

MARGIN = 0.02


class Right(MeanMetric):
    name, reads = "right-of-power-tests", ("right",)

    def each(self, outcomes):
        return outcomes["right"].astype(np.float64)


def difference(generator, units: int, flips: float, losses):
    """Accuracy of two models whose answers differ on a share of the units, by `losses` of each seed."""
    reference, compact = {}, {}
    for seed, loss in enumerate(losses):
        moved = generator.choice([-1, 0, 1], units, p=[(flips + loss) / 2, 1 - flips, (flips - loss) / 2])
        right = np.where(moved == 0, generator.random(units) < 0.7, moved < 0)
        after = np.where(moved == 0, right, ~right)
        for kept, answers in ((reference, right), (compact, after)):
            kept[seed] = Right().jackknife(Outcomes({"right": answers}))
    return paired_difference(reference, compact, units)


@pytest.mark.parametrize(("loss", "verdict"), [(0.0, WITHIN), (0.045, WORSE)])
def test_the_units_it_names_give_the_verdict_as_often_as_it_promises(loss, verdict):
    units = units_needed(errors_of_flips(0.08, loss), abs(MARGIN - loss), 0.8)
    generator = np.random.default_rng(3)
    found = [judge(difference(generator, units, 0.08, [loss]), MARGIN).verdict for _ in range(400)]
    assert np.mean([each == verdict for each in found]) == pytest.approx(0.8, abs=0.06)


def test_with_seeds_too():
    spread, seeds = 0.004, 4
    errors = errors_of_flips(0.08, 0.0, spread)
    units = units_needed(errors, MARGIN, 0.8, seeds)
    assert units > units_needed(errors_of_flips(0.08), MARGIN, 0.8)
    generator, found = np.random.default_rng(4), []
    shared = units  # seeds answer shared units by one draw: then their errors are the same, as planned for
    for _ in range(300):
        moved = generator.choice([-1.0, 0.0, 1.0], shared, p=[0.04, 0.92, 0.04])
        losses = generator.normal(0.0, spread, seeds)
        groups = np.arange(units) % 1000
        left = (moved.sum() - np.bincount(groups, moved)) / (units - np.bincount(groups))
        values = {k: -losses[k] + np.concatenate([[moved.mean()], left]) for k in range(seeds)}
        zero = {k: np.zeros(1001) for k in range(seeds)}
        found.append(judge(paired_difference(zero, values, units), MARGIN).verdict == WITHIN)
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)


def test_it_is_the_closed_form_of_a_paired_difference_where_lumps_are_small():
    normal = NormalDist()
    expected = (normal.inv_cdf(0.975) + normal.inv_cdf(0.8)) ** 2 * 0.06 / 0.01**2
    assert units_needed(Errors(math.sqrt(0.06)), 0.01) == pytest.approx(expected, rel=1e-3)
    assert units_needed(errors_of_flips(0.06), 0.01) == pytest.approx(expected, rel=0.02)


def test_an_unpaired_test_needs_over_four_times_as_many():
    """Two accuracies of 0.76 whose models flip 6 % of the answers; lm-evaluation-harness compares them unpaired."""
    unpaired = Errors(math.sqrt(2 * 0.76 * 0.24))
    assert units_needed(errors_of_flips(0.06, 0.01), 0.01) < units_needed(unpaired, 0.01) / 4


def test_more_units_never_hurt_and_seeds_bound_what_units_can_do():
    errors = Errors(0.5, 0.01)
    chances = [power(errors, 0.03, units, 3) for units in (10, 100, 1000, 10**6, 10**9)]
    assert chances == sorted(chances)
    assert units_needed(errors, 0.015, 0.8, 2) is None
    seeds = seeds_needed(errors, 0.015)
    assert seeds > 2
    assert units_needed(errors, 0.015, 0.8, seeds) is not None
    assert units_needed(errors, 0.015, 0.8, seeds - 1) is None


def test_a_plan_from_a_measured_difference_is_that_of_its_flips():
    found = errors_of(difference(np.random.default_rng(5), 900, 0.1, [0.0]))
    assert found.deviation == pytest.approx(math.sqrt(0.1), rel=0.15)
    assert found.lump == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize(
    ("flips", "loss", "gap", "chance", "words"),
    [
        (0.0, 0.0, 0.01, 0.8, "share of answers that change"),
        (1.5, 0.0, 0.01, 0.8, "share of answers that change"),
        (math.nan, 0.0, 0.01, 0.8, "share of answers that change"),
        (0.01, 0.02, 0.01, 0.8, "at least as many flips"),
        (0.1, 0.0, 0.0, 0.8, "lies at the margin"),
        (0.1, 0.0, 0.01, 1.0, "between 0 and 1"),
    ],
)
def test_what_has_no_answer_is_refused(flips, loss, gap, chance, words):
    with pytest.raises(ConfigError, match=words):
        units_needed(errors_of_flips(flips, loss), gap, chance)


def test_a_gap_that_no_test_set_shows_is_one_line():
    with pytest.raises(ConfigError, match="more test units than anybody has"):
        units_needed(errors_of_flips(0.06, 0.0, 0.0), 1e-300)
