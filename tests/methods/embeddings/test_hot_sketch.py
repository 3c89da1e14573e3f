from __future__ import annotations

import numpy as np
import pytest
import torch

from lessen.methods.embeddings.hot_sketch import EMPTY, HotSketch


def zipf_stream(rows, ids, exponent, seed=0):
    shares = np.arange(1, ids + 1.0) ** -exponent
    drawn = np.random.default_rng(seed).choice(ids, size=rows, p=shares / shares.sum())
    return torch.from_numpy(drawn)


def fed(sketch, stream, batch=2000, threshold=None):
    for part in torch.split(stream, batch):
        ids, counts = torch.unique(part, return_counts=True)
        sketch.insert(ids, counts.double())
        if threshold:
            sketch.promote(threshold)


def test_with_room_for_all_the_scores_are_exact_sums():
    sketch, stream = HotSketch(5000, 10), zipf_stream(20_000, 300, 1.1)
    fed(sketch, stream, batch=700)
    held = sketch.ids != EMPTY
    found = dict(zip(sketch.ids[held].tolist(), sketch.scores[held].tolist(), strict=True))
    exact = torch.bincount(stream)
    assert found == {i: float(n) for i, n in enumerate(exact.tolist()) if n}


def test_no_id_is_in_two_slots_and_the_total_is_what_came_in():
    sketch, stream = HotSketch(50, 10), zipf_stream(20_000, 5000, 1.1)
    fed(sketch, stream)
    ids = sketch.ids[sketch.ids != EMPTY]
    assert len(ids.unique()) == len(ids)
    assert torch.equal(sketch.bucket(sketch.ids.clamp(min=0))[sketch.ids >= 0], (sketch.ids >= 0).nonzero()[:, 0])
    # nothing owned a row, so every value was added to some slot
    assert float(sketch.scores.sum()) == 20_000


def test_the_most_frequent_ids_are_held_in_a_skewed_stream():
    hot, ids = 1000, 20_000
    sketch, stream = HotSketch(hot, hot), zipf_stream(400_000, ids, 1.1)
    fed(sketch, stream)
    best = torch.argsort(torch.bincount(stream, minlength=ids), descending=True)[:hot]
    order = torch.argsort(sketch.scores.view(-1), descending=True)[:hot]
    assert float(torch.isin(best, sketch.ids).float().mean()) > 0.95
    # ids at the edge change places, because a newcomer inherits the score it takes over
    assert float(torch.isin(best, sketch.ids.view(-1)[order]).float().mean()) > 0.8


def test_each_row_has_one_owner_and_decay_gives_rows_back():
    sketch = HotSketch(100, 30)
    fed(sketch, zipf_stream(20_000, 2000, 1.1), threshold=20.0)
    owned = sketch.rows[sketch.rows != EMPTY]
    assert len(owned.unique()) == len(owned)
    assert len(owned) + len(sketch.free_rows()) == 30
    assert bool((sketch.scores[sketch.rows != EMPTY] >= 20.0).all())
    ids, rows = sketch.ids[sketch.rows != EMPTY], owned
    assert torch.equal(sketch.row_of(ids), rows)
    sketch.decay(0.5, 1e9)
    assert len(sketch.free_rows()) == 30
    assert int(sketch.row_of(ids).max()) == EMPTY


def test_an_owner_is_never_overwritten_and_a_query_inserts_nothing():
    sketch = HotSketch(1, 4)
    sketch.insert(torch.arange(4), torch.tensor([9.0, 9.0, 9.0, 9.0], dtype=torch.float64))
    sketch.promote(9.0)
    sketch.insert(torch.tensor([77]), torch.tensor([5.0], dtype=torch.float64))
    assert sorted(sketch.ids.view(-1).tolist()) == [0, 1, 2, 3]
    before = sketch.ids.clone()
    assert sketch.row_of(torch.tensor([77, 12345])).tolist() == [EMPTY, EMPTY]
    assert torch.equal(sketch.ids, before)


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_an_id_of_a_large_share_is_held_more_often_than_the_bound(share):
    buckets, held = 40, 0
    for seed in range(40):
        stream = torch.from_numpy(np.random.default_rng(seed).integers(0, 10_000, 4000))
        stream[torch.rand(4000, generator=torch.Generator().manual_seed(seed)) < share] = 10_001
        sketch = HotSketch(buckets, 1)
        fed(sketch, stream, batch=500)
        held += bool((sketch.ids == 10_001).any())
    assert held / 40 > 1 - (1 - share) / (3 * share * buckets)
