"""Hash invariants: range, exact fields, collisions against the closed form, odd ids, persistence."""

from __future__ import annotations

import pytest
import torch

from lessen.stored.fields import Segment
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.hashed_embedding import HashedEmbedding


def made(rows=1000, buckets=(100,), hashes=1, signed=False, modulo=True, segments=(), padding=None, seed=0):
    table = HashedEmbedding(TableShape(rows, 6, padding, segments=segments), list(buckets), hashes, signed)
    table.reset(0.1, torch.Generator().manual_seed(seed), modulo)
    return table


def test_as_many_buckets_as_rows_is_a_plain_table():
    for hashes in (1, 2):
        table = made(50, (50,), hashes)
        ids = torch.arange(50)
        assert torch.allclose(table(ids), table.table.weight, atol=1e-7)


def test_modulo_hash_is_the_remainder_and_fields_stay_apart():
    table = made(101, (1, 10, 60), segments=(Segment("a", 1, 40), Segment("b", 41, 60)))
    rows, _ = table.rows_of(torch.arange(101))
    assert rows[0, 0] == 0
    assert rows[1:41, 0].tolist() == [1 + number % 10 for number in range(40)]
    assert rows[41:, 0].tolist() == [11 + number for number in range(60)]


@pytest.mark.parametrize("hashes", [1, 2, 3])
def test_rows_are_in_range_for_negative_and_huge_ids(hashes):
    table = made(1000, (77,), hashes, modulo=False)
    ids = torch.tensor([-1, -(2**40), 0, 999, 2**31, 2**62])
    rows, _ = table.rows_of(ids)
    assert rows.shape == (6, hashes)
    assert int(rows.min()) >= 0
    assert int(rows.max()) < 77


def test_collisions_follow_the_closed_form_and_buckets_are_even():
    rows, size = 20_000, 5_000
    table = made(rows, (size,), modulo=False)
    found, _ = table.rows_of(torch.arange(rows))
    used = len(found.unique())
    expected = size * (1 - (1 - 1 / size) ** rows)
    assert abs(used - expected) < 0.02 * size
    counts = torch.bincount(found[:, 0], minlength=size).float()
    chi_square = float(((counts - rows / size) ** 2 / (rows / size)).sum())
    assert chi_square < size + 6 * (2 * size) ** 0.5


def test_two_hashes_confuse_far_fewer_pairs_than_one():
    single, _ = made(2000, (200,), 1, modulo=False).rows_of(torch.arange(2000))
    double, _ = made(2000, (200,), 2, modulo=False).rows_of(torch.arange(2000))
    assert len(single.unique(dim=0)) <= 200
    assert len(double.unique(dim=0)) > 1800


def test_output_deviation_is_kept_and_padding_is_zero():
    for hashes in (1, 2, 4):
        table = made(4000, (2000,), hashes, modulo=False, padding=0)
        out = table(torch.arange(1, 4000))
        assert float(out.detach().std()) == pytest.approx(0.1, rel=0.1)
        assert not bool(table(torch.tensor([0])).any())


def test_signs_are_balanced_and_state_carries_the_hash():
    table = made(5000, (50,), 1, signed=True, modulo=False)
    _, signs = table.rows_of(torch.arange(5000))
    assert abs(float(signs.mean())) < 0.1
    twin = HashedEmbedding.from_config(table.config())
    twin.load_state_dict(table.state_dict())
    ids = torch.randint(0, 5000, (9,))
    assert torch.equal(twin(ids), table(ids))
    assert not torch.equal(made(5000, (50,), 1, True, False, seed=1).constants, table.constants)


def test_gradients_of_colliding_ids_add():
    table = made(20, (10,))
    table(torch.tensor([3, 13])).sum().backward()
    assert table.table.weight.grad[3].tolist() == [2.0] * 6


@pytest.mark.parametrize(
    "change", [{"buckets": [0]}, {"buckets": [5, 5]}, {"buckets": 7}, {"hashes": 0}, {"signed": 1}]
)
def test_senseless_configurations_are_refused(change):
    with pytest.raises((ValueError, TypeError)):
        HashedEmbedding.from_config({**made().config(), **change})
