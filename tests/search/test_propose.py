"""What a search proposes: fronts, predictors and rounds on spaces that can be listed whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lessen.errors import ConfigError
from lessen.metrics import AUC, LOGLOSS
from lessen.search import Goal, Measured, Space, propose
from lessen.search.genetic import evolve
from lessen.search.pareto import crowding, hypervolume, ranks, undominated
from lessen.search.predictors import Predictor

BITS = {"rtn": {"bits": {"any": [8, 6, 4, 3, 2]}, "table_bits": None}}


def brute_front(values):
    return {tuple(row) for row in values if not any((other <= row).all() and (other < row).any() for other in values)}


def test_undominated_rows_are_those_that_nothing_beats():
    values = np.random.default_rng(0).integers(0, 12, (60, 2)).astype(float)
    assert {tuple(values[row]) for row in undominated(values)} == brute_front(values)


def test_ranks_peel_fronts():
    values = np.random.default_rng(1).integers(0, 9, (40, 2)).astype(float)
    levels = ranks(values)
    left = values
    for level in range(levels.max() + 1):
        assert {tuple(row) for row in values[levels == level]} == brute_front(left)
        left = values[levels > level]


def test_hypervolume_is_the_area_by_counting():
    corner = np.array([1.0, 1.0])
    assert hypervolume(np.array([[0.25, 0.5], [0.5, 0.25], [2.0, 0.0]]), corner) == pytest.approx(0.5)
    assert hypervolume(np.zeros((0, 2)), corner) == 0.0
    grid = np.random.default_rng(2).integers(0, 10, (8, 2)) / 10
    cells = sum(
        any(p[0] <= x / 10 + 1e-9 and p[1] <= y / 10 + 1e-9 for p in grid)
        for x, y in itertools.product(range(10), repeat=2)
    )
    assert hypervolume(grid, corner) == pytest.approx(cells / 100)


def test_ends_of_a_front_stand_alone():
    values = np.array([[0.0, 3.0], [1.0, 1.0], [3.0, 0.0]])
    alone = crowding(values, ranks(values))
    assert np.isinf(alone[[0, 2]]).all()
    assert alone[1] == pytest.approx(2.0)


def test_a_sum_of_options_is_predicted_exactly():
    space = Space.parse([["none", BITS]] * 3)
    genomes = list(space.genomes())
    truth = np.random.default_rng(0).normal(size=(3, 6))
    truth[:, 0] = 0.0
    values = np.array([sum(truth[at, pick] for at, pick in enumerate(g)) for g in genomes])
    rows = np.random.default_rng(1).permutation(len(genomes))[:60]
    predictor = Predictor.fit(space.features([genomes[row] for row in rows]), values[rows])
    assert predictor.width is None
    assert np.abs(predictor(space.features(genomes)) - values).max() < 1e-3
    assert predictor.error < 1e-3


def test_the_error_when_left_out_is_the_one_of_fitting_without():
    draw = np.random.default_rng(3)
    points, values = draw.integers(0, 2, (12, 5)).astype(float), draw.normal(size=12)
    whole = Predictor.fit(points, values)
    gram = points @ points.T + 1 if whole.width is None else None
    if gram is None:
        apart = ((points[:, None] - points[None]) ** 2).sum(2)
        gram = np.exp(-whole.width * apart)
    ridge = np.linalg.inv(whole.inverse)[0, 0] - gram[0, 0]
    target = (values - values.mean()) / values.std()
    errors = []
    for out in range(12):
        rest = [row for row in range(12) if row != out]
        weights = np.linalg.solve(gram[np.ix_(rest, rest)] + ridge * np.eye(11), target[rest])
        errors.append(target[out] - gram[out, rest] @ weights)
    assert whole.error == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-4)


def test_the_genetic_search_finds_a_known_front():
    widths = [8] * 10
    people = evolve(
        widths,
        lambda rows: np.stack([rows.sum(1), (7 - rows).sum(1) + 3 * (rows % 2).sum(1)], 1).astype(float),
        np.zeros((1, 10), dtype=np.int64),
        np.random.default_rng(0),
    )
    assert (people % 2).sum() / people.size < 0.1  # odd genes only cost


def additive(space, seed):
    draw = np.random.default_rng(seed)
    cost = [
        np.sort(draw.random(width))[::-1] * share
        for width, share in zip(space.widths, draw.dirichlet([1] * 4), strict=True)
    ]
    harm = [
        np.append(0, np.cumsum(draw.exponential(0.002, width - 1) * 2.0 ** np.arange(width - 1)))
        for width in space.widths
    ]
    both = {}
    for genome in space.genomes():
        loss = sum(harm[at][pick] for at, pick in enumerate(genome))
        loss += 20 * harm[0][genome[0]] * harm[1][genome[1]]
        both[genome] = Measured(float(sum(cost[at][pick] for at, pick in enumerate(genome))), float(loss))
    return both


@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_of_the_space_finds_nearly_all_of_its_front(seed):
    space = Space.parse([["none", BITS]] * 4)
    truth = additive(space, seed)
    values = np.array([[m.cost, m.loss] for m in truth.values()])
    corner = np.array([1.0, float(np.quantile(values[:, 1], 0.5))])
    measured, areas = {}, []
    while len(measured) < space.size // 10:
        fresh = propose(space, measured, 16, seed=seed)
        assert not set(fresh) & set(measured)
        measured |= {genome: truth[genome] for genome in fresh}
        areas.append(hypervolume(np.array([[m.cost, m.loss] for m in measured.values()]), corner))
    assert areas == sorted(areas)
    assert areas[-1] >= 0.97 * hypervolume(values, corner)
    blind = np.random.default_rng(seed).permutation(len(values))[: len(measured)]
    assert areas[-1] > hypervolume(values[blind], corner)


def test_a_space_that_is_used_up_gives_nothing_more():
    space = Space.parse([["none", "linear-int8"], ["none", "emb-half"]])
    measured = {}
    for _ in range(5):
        for genome in propose(space, measured, 2):
            measured[genome] = Measured(0.5 + 0.1 * sum(genome), 0.1 * sum(genome))
    assert set(measured) == {(0, 1), (1, 0), (1, 1)}
    assert propose(space, measured, 2) == []


def test_an_option_that_never_works_is_left_alone():
    space = Space.parse([["none", BITS]] * 3)
    measured = {}
    for turn in range(8):
        for genome in propose(space, measured, 6):
            assert turn < 2 or genome[1] != 5
            works = genome[1] != 5
            measured[genome] = Measured(1 - sum(genome) / 20, sum(genome) / 10) if works else Measured(None, None)


def test_goals_read_both_directions_and_refuse_what_is_not_measured():
    goal = Goal.parse("stored_bytes<=0.1x, auc>=-0.001", "stored_bytes", {"auc": AUC, "logloss": LOGLOSS})
    assert (goal.most, goal.loss) == (0.1, 0.001)
    assert goal.misses(0.1, 0.001) == 0
    assert goal.misses(0.2, 0.0) == pytest.approx(1.0)
    scores = goal.scores(np.array([0.05, 0.08, 0.05]), np.array([0.0, 0.0, 0.01]))
    assert scores.argsort().tolist() == [0, 1, 2]
    assert Goal.parse("logloss<=0.002", "stored_bytes", {"logloss": LOGLOSS}).loss == 0.002
    for text, message in [
        ("", "give --budget"),
        ("macs<=0.1x", "this search is about"),
        ("stored_bytes<=100kB", "share of the reference"),
        ("auc<=0.001", "the loss that you accept"),
        ("logloss<=0.1", "first metric"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Goal.parse(text, "stored_bytes", {"auc": AUC, "logloss": LOGLOSS})
