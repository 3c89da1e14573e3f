from __future__ import annotations

import pytest

from lessen.decoding.cost import CostCurve, costs_hold, measure_costs
from lessen.errors import ConfigError


def test_straight_between_and_beyond_the_measured_sizes():
    curve = CostCurve((1, 3, 5), (1.0, 2.0, 6.0))
    assert [curve.seconds(rows) for rows in (1, 2, 3, 4, 5, 6)] == [1.0, 1.5, 2.0, 4.0, 6.0, 8.0]
    assert CostCurve((1,), (2.0,)).seconds(9) == 2.0
    assert curve.relative() == {1: 1.0, 3: 2.0, 5: 6.0}


def test_more_rows_than_measured_never_come_free():
    flat = CostCurve((1, 64), (1.0, 1.0))
    assert flat.seconds(640) > 4.0


def test_measuring_keeps_the_quickest_call():
    now = [0.0]
    delays = {1: iter([0.4, 0.5, 0.1, 0.5]), 4: iter([0.3, 0.2, 0.8])}

    def run(rows):
        now[0] += next(delays[rows])

    curve = measure_costs(run, sizes=(1, 4), repeats=3, limit_seconds=1e9, clock=lambda: now[0])
    assert curve.times == pytest.approx((0.1, 0.2))


def test_measuring_stops_at_its_time_limit_but_measures_every_size_once():
    now, calls = [0.0], []

    def run(rows):
        calls.append(rows)
        now[0] += 10.0

    measure_costs(run, sizes=(1, 2), repeats=5, limit_seconds=15.0, clock=lambda: now[0])
    assert calls == [1, 1, 2]


def test_slow_models_are_measured_at_fewer_sizes():
    now = [0.0]

    def run(rows):
        now[0] += 2.0

    assert measure_costs(run, sizes=(1, 2, 3, 4, 5, 8), repeats=1, clock=lambda: now[0]).sizes == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("sizes", "times"), [((), ()), ((2, 1), (1.0, 1.0)), ((1, 2), (1.0,)), ((1,), (0.0,)), ((0,), (1.0,))]
)
def test_bad_curves_are_refused(sizes, times):
    with pytest.raises(ConfigError, match="cost curve"):
        CostCurve(sizes, times)


@pytest.mark.parametrize(
    ("factors", "holds"), [((1.0,) * 3, True), ((3.0,) * 3, True), ((1.0, 1.2, 1.3), True), ((1.0, 1.0, 3.0), False)]
)
def test_a_curve_holds_while_relative_costs_do(factors, holds):
    """All passes may take longer, as on a slower clock; their ratios may not move."""
    clock, curve = [0.0], CostCurve((1, 4, 16), (0.1, 0.2, 0.4))
    longer = dict(zip((1, 4, 16), factors, strict=True))

    def run(rows):
        clock[0] += curve.seconds(rows) * longer[rows]

    assert costs_hold(curve, run, clock=lambda: clock[0]) is holds
