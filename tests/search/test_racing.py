"""Races: the winner of all rows, on part of them."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest

from lessen.errors import ConfigError
from lessen.metrics import AUC, LOGLOSS, Outcomes
from lessen.search import Space, search
from lessen.search.goal import Goal
from lessen.search.heats import RACES, Heats, read
from lessen.search.racing import LOOKS, race
from lessen.search.run import EVALUATIONS
from lessen.study import MeasureOptions, Study
from toy import ToyTask

METRICS = {"auc": AUC, "logloss": LOGLOSS}


def entrants(seed, count=12, rows=4000):
    draw = np.random.default_rng(seed)
    score = draw.normal(size=rows)
    target = (draw.random(rows) < 1 / (1 + np.exp(-score))).astype(np.float64)
    noise = np.abs(draw.normal(0, 0.4, count))
    made = [Outcomes({"score": score + one * draw.normal(size=rows), "target": target}) for one in noise]
    return Outcomes({"score": score, "target": target}), made, draw.uniform(0.1, 0.6, count), draw.permutation(rows)


def judged(base, made, order, log):
    def judge(entrant, share):
        rows = order[: round(share * len(order))]
        log.append((entrant, share))
        return Outcomes({n: v[rows] for n, v in (base if entrant is None else made[entrant]).columns.items()})

    return judge


@pytest.mark.parametrize("budget", ["stored_bytes<=0.5x", "auc>=-0.01", "stored_bytes<=0.4x, auc>=-0.02"])
def test_races_name_the_winner_of_all_rows_and_read_fewer(budget):
    goal, same, read_rows = Goal.parse(budget, "stored_bytes", METRICS), 0, []
    for seed in range(12):
        base, made, costs, order = entrants(seed)
        finish = race(list(costs), judged(base, made, order, []), AUC, goal)
        whole = np.array([AUC(base) - AUC(one) for one in made])
        same += finish.winner == int(np.argmin(goal.scores(costs, whole)))
        read_rows.append(np.mean(finish.shares))
    assert same >= 11
    assert np.mean(read_rows) < 0.6


def test_who_went_out_is_judged_no_more_and_the_last_look_is_exact():
    base, made, costs, order = entrants(3)
    seen = []
    goal = Goal.parse("stored_bytes<=1x", "stored_bytes", METRICS)
    finish = race(list(costs), judged(base, made, order, seen), AUC, goal)
    for entrant, share in enumerate(finish.shares):
        assert [look for one, look in seen if one == entrant] == [look for look in LOOKS if look <= share]
        if share == 1.0:
            assert finish.losses[entrant] == pytest.approx(AUC(base) - AUC(made[entrant]))
    assert min(finish.shares) < 1.0


def test_equal_entrants_do_not_throw_each_other_out():
    base, made, _, order = entrants(0, count=1)
    finish = race(
        [0.5, 0.5, 0.5], judged(base, made * 3, order, []), AUC, Goal.parse("auc>=-0.9", "stored_bytes", METRICS)
    )
    assert finish.winner == 0
    logloss = Goal.parse("stored_bytes<=1x", "stored_bytes", {"logloss": LOGLOSS})
    assert race([0.5, 0.4], judged(base, made * 2, order, []), LOGLOSS, logloss).winner == 0


def test_a_search_that_races_keeps_what_went_out_and_resumes(tmp_path):
    space = Space.parse([
        ["none", {"emb-rowwise-quant": {"bits": {"any": [8, 4, 2]}, "min_rows": 10}}],
        ["none", {"emb-prune-rows": {"keep": {"any": [0.05, 0.2]}, "min_rows": 10}}],
        ["none", {"linear-int8": {"min_weights": 16}}],
    ])  # fmt: skip
    quick = MeasureOptions(rounds=8, peak_memory=False, baselines=False)
    asked = Study("racing", ToyTask(examples=4000), [space.recipe((1, 0, 0))], (0,), measure=quick)
    out = tmp_path / "out"
    result = search(asked, space, "auc>=-0.01", out, evaluations=14, batch=6, race=True)
    lines = (out / EVALUATIONS / "measurements.jsonl").read_text().splitlines()
    gone = read(out)
    assert gone
    assert result.tried == len(lines) + len(gone)
    assert not {json.loads(line)["recipe_hash"] for line in lines} & set(gone)
    assert all(0 < one.share < 1 for one in gone.values())
    again = search(asked, space, "auc>=-0.01", out, evaluations=14, batch=6, race=True, resume=True)
    assert (again.winner, again.tried) == (result.winner, result.tried)
    (out / RACES).write_text("[1]")
    with pytest.raises(ConfigError, match="is damaged"):
        search(asked, space, "auc>=-0.01", out, evaluations=14, race=True, resume=True)


def test_a_cost_that_needs_a_clock_cannot_race():
    goal = types.SimpleNamespace(cost="latency_ms_p50")
    with pytest.raises(ConfigError, match="without a clock"):
        Heats(ToyTask(examples=400), goal, 0)
