"""The quotient-remainder map is injective, exact at c = 1, and equals an explicit table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.stored.fields import Segment
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.quotient_remainder import QuotientRemainderEmbedding


def made(rows, collisions, operation="multiply", segments=(), mode=None, padding=None):
    table = QuotientRemainderEmbedding(TableShape(rows, 4, padding, mode, segments=segments), collisions, operation)
    table.reset(0.1, torch.Generator().manual_seed(0))
    return table


@given(rows=st.integers(1, 400), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_id_has_its_own_pair_of_rows(rows, data):
    collisions = data.draw(st.integers(1, rows))
    table = made(rows, [collisions])
    quotient, remainder = table.rows_of(torch.arange(rows))
    assert len(set(zip(quotient.tolist(), remainder.tolist(), strict=True))) == rows
    assert int(quotient.max()) < len(table.quotient.weight) == -(-rows // collisions)
    assert int(remainder.max()) < len(table.remainder.weight) == collisions


def test_one_collision_is_exact_and_fields_do_not_share_rows():
    table = made(31, [1, 1, 5], segments=(Segment("a", 1, 10), Segment("b", 11, 20)))
    ids = torch.arange(11)
    assert torch.equal(table(ids), table.quotient.weight[:11])
    quotient, remainder = table.rows_of(torch.arange(31))
    assert set(quotient[:11].tolist()).isdisjoint(quotient[11:].tolist())
    assert set(remainder[:11].tolist()).isdisjoint(remainder[11:].tolist())


@pytest.mark.parametrize("operation", ["multiply", "add"])
def test_bags_compose_each_id_before_pooling(operation):
    table = made(20, [4], operation, mode="sum")
    ids = torch.tensor([[1, 2, 3], [17, 17, 0]])
    assert torch.allclose(table(ids), table.dequantise()[ids].sum(1))


def test_gradients_equal_those_of_the_explicit_table():
    table = made(20, [4])
    ids, target = torch.tensor([3, 7, 3]), torch.randn(3, 4)
    (table(ids) * target).sum().backward()
    quotient, remainder = table.rows_of(ids)
    expected = torch.zeros_like(table.quotient.weight)
    for row, other, want in zip(quotient, remainder, target, strict=True):
        expected[row] += want * table.remainder.weight[other].detach()
    assert torch.allclose(table.quotient.weight.grad, expected)


def test_large_ids_are_divided_exactly_and_bad_ids_refused():
    table = made(2**24 + 100, [2**12])
    ids = torch.tensor([2**24 + 1, 2**24 + 99])
    quotient, remainder = table.rows_of(ids)
    assert (quotient * 2**12 + remainder).tolist() == ids.tolist()
    for bad in (-1, 2**24 + 100):
        with pytest.raises(IndexError, match="out of range"):
            table(torch.tensor([bad]))


def test_start_keeps_the_spread_and_padding_is_zero():
    table = made(2000, [10], padding=5)
    assert float(table.dequantise().std()) == pytest.approx(0.1, rel=0.1)
    assert not bool(table(torch.tensor([5])).any())
    with pytest.raises(ValueError, match="operation"):
        QuotientRemainderEmbedding(TableShape(4, 2), [2], "concat")
    with pytest.raises(ValueError, match="collisions"):
        QuotientRemainderEmbedding(TableShape(4, 2), [2, 2], "add")
