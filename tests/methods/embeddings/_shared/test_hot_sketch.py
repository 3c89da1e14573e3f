from __future__ import annotations

import numpy as np
import pytest
import torch

from lessen.methods.embeddings._shared.hot_sketch import EMPTY, HotSketch


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


class SlowSketch:
    """The sketch as the sheet describes it, one id after the other, over lists: each slot is [id, score, row]."""

    def __init__(self, buckets, rows):
        self.buckets = [[[EMPTY, 0.0, EMPTY] for _ in range(4)] for _ in range(buckets)]
        self.free = set(range(rows))

    def insert(self, bucket, ids, values):
        new = []
        for number, item, value in zip(bucket, ids, values, strict=True):
            held = [slot for slot in self.buckets[number] if slot[0] == item]
            if held:
                held[0][1] += value
            else:
                new.append((number, item, value))
        for number, item, value in new:
            slot = min(self.buckets[number], key=lambda slot: slot[1])
            if slot[2] == EMPTY:
                slot[0], slot[1] = item, slot[1] + value

    def promote(self, threshold):
        able = [slot for bucket in self.buckets for slot in bucket if slot[1] >= threshold and slot[2] == EMPTY]
        for slot, row in zip(sorted(able, key=lambda slot: -slot[1]), sorted(self.free), strict=False):
            slot[2] = row
            self.free.remove(row)

    def decay(self, rate, threshold):
        for slot in (slot for bucket in self.buckets for slot in bucket):
            slot[1] *= rate
            if slot[1] < threshold and slot[2] != EMPTY:
                self.free.add(slot[2])
                slot[2] = EMPTY


@pytest.mark.parametrize("seed", range(3))
def test_batches_give_exactly_what_one_id_after_the_other_gives(seed):
    sketch, slow = HotSketch(20, 15), SlowSketch(20, 15)
    generator = torch.Generator().manual_seed(seed)
    for part in torch.split(zipf_stream(3000, 400, 1.1, seed), 50):
        ids = torch.unique(part)
        values = torch.rand(len(ids), dtype=torch.float64, generator=generator)
        slow.insert(sketch.bucket(ids).tolist(), ids.tolist(), values.tolist())
        sketch.insert(ids, values)
        if float(values[0]) < 0.3:
            sketch.decay(0.9, 2.0)
            slow.decay(0.9, 2.0)
        sketch.promote(2.0)
        slow.promote(2.0)
    flat = [slot for bucket in slow.buckets for slot in bucket]
    assert sketch.ids.view(-1).tolist() == [slot[0] for slot in flat]
    assert sketch.scores.view(-1).tolist() == [slot[1] for slot in flat]
    assert sketch.rows.view(-1).tolist() == [slot[2] for slot in flat]
    assert sketch.free_rows().tolist() == sorted(slow.free)
    assert any(slot[2] != EMPTY for slot in flat)


def test_space_saving_holds_what_exceeds_a_quarter_of_its_bucket_and_never_underestimates():
    sketch, stream = HotSketch(30, 1), zipf_stream(20_000, 3000, 1.2)
    fed(sketch, stream, batch=500)
    exact = torch.bincount(stream, minlength=3000).double()
    bucket = sketch.bucket(torch.arange(3000))
    total = torch.zeros(30, dtype=torch.float64).index_add_(0, bucket, exact)
    assert torch.equal(sketch.scores.sum(dim=1), total)
    heavy = (exact > total[bucket] / 4).nonzero()[:, 0]
    assert len(heavy) > 10
    assert bool(torch.isin(heavy, sketch.ids).all())
    held = sketch.ids != EMPTY
    ids, scores = sketch.ids[held], sketch.scores[held]
    assert bool((scores >= exact[ids]).all())
    assert bool((scores - exact[ids] <= total[bucket[ids]] / 4).all())


def test_scores_at_the_threshold_own_a_row_and_lose_it_just_below():
    sketch = HotSketch(1, 2)
    sketch.insert(torch.arange(3), torch.tensor([4.0, 5.0, 3.9], dtype=torch.float64))
    ids, rows = sketch.promote(4.0)
    assert ids.tolist() == [1, 0]
    assert rows.tolist() == [0, 1]
    sketch.decay(0.9, 4.0)
    assert sketch.row_of(torch.arange(3)).tolist() == [EMPTY, 0, EMPTY]
    assert sketch.scores[0, :3].tolist() == pytest.approx([3.6, 4.5, 3.51])
    assert sketch.promote(4.0)[0].tolist() == []
