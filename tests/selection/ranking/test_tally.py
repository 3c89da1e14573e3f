"""Tallies: exact while they fit, the same in any order, unbiased beyond."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.selection.ranking.information import Chance
from lessen.selection.ranking.rows import mix
from lessen.selection.ranking.tally import NO_CLASS, Tally


def tally_of(values, classes, limit, cuts=()):
    tally = Tally(limit)
    for part, codes in zip(np.split(values, cuts), np.split(classes, cuts), strict=True):
        tally.add(mix(part.astype(np.uint64)), codes.astype(np.uint8))
    return tally


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 60), st.integers(0, 10**6))
def test_chunks_orders_and_merges_agree(rows, values, limit, seed):
    rng = np.random.default_rng(seed)
    column, classes = rng.integers(0, values, rows), rng.integers(0, 3, rows)
    whole = tally_of(column, classes, limit)
    order = rng.permutation(rows)
    cuts = np.sort(rng.integers(0, rows + 1, 4))
    shuffled = tally_of(column[order], classes[order], limit, cuts)
    merged = tally_of(column[: rows // 2], classes[: rows // 2], limit)
    merged.merge(tally_of(column[rows // 2 :], classes[rows // 2 :], limit))
    for other in (shuffled, merged):
        assert np.array_equal(whole.keys, other.keys)
        assert np.array_equal(whole.counts, other.counts)
        assert whole.bound == other.bound


def test_counts_are_exact_while_the_values_fit():
    rng = np.random.default_rng(0)
    column, classes = rng.integers(0, 500, 5_000), rng.integers(0, 4, 5_000)
    classes[:100] = NO_CLASS
    tally = tally_of(column, classes, 500)
    seen = np.unique(column[100:], return_counts=True)[1]
    table = tally.contingency(np.bincount(classes[100:]))
    assert tally.exact
    assert tally.cardinality == len(np.unique(column))
    assert tally.cardinality_error == 0
    assert sorted(table.values) == sorted(seen)
    assert table.cells.sum() == 4_900
    assert tally.value_counts().sum() == 5_000


def test_cardinality_beyond_the_limit_is_within_its_stated_error():
    values = np.arange(400_000)
    tally = tally_of(values, np.zeros(400_000), 4_096)
    assert not tally.exact
    assert len(tally.value_counts()) == 4_096
    assert tally.cardinality_error == pytest.approx(1 / np.sqrt(4_095))
    assert abs(tally.cardinality / 400_000 - 1) < 4 * tally.cardinality_error


def test_scores_beyond_the_limit_estimate_the_exact_ones():
    rng = np.random.default_rng(1)
    column = rng.integers(0, 20_000, 200_000)
    classes = (rng.random(200_000) < 0.3 + 0.4 * (mix(column.astype(np.uint64)) % np.uint64(7) < 3)).astype(np.int64)
    chance = Chance(np.bincount(classes))
    exact = chance.scores(tally_of(column, classes, 20_000).contingency(np.bincount(classes)))
    part = chance.scores(tally_of(column, classes, 4_000).contingency(np.bincount(classes)))
    assert part.corrected == pytest.approx(exact.corrected, rel=0.1)
    assert exact.corrected > 0.05


def test_recoding_classes():
    tally = tally_of(np.asarray([1, 1, 2]), np.asarray([0, 1, 1]), 10)
    before = tally.contingency(np.asarray([1, 2])).cells.sum()
    mapping = np.full(256, NO_CLASS, dtype=np.uint8)
    mapping[:2] = [1, 0]
    tally.recode(mapping)
    assert np.array_equal(tally.keys, np.sort(tally.keys))
    assert tally.contingency(np.asarray([2, 1])).cells.sum() == before
