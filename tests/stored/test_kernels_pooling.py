"""Compiled lookups give what torch's operators give, for every layout, pooling and integer type, and refuse the rest."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lessen.stored import kernels
from lessen.stored.embedding import StoredEmbedding, TableShape
from lessen.stored.half_embedding import HalfEmbedding
from lessen.stored.kernels import machine
from lessen.stored.product_quantized import ProductQuantizedEmbedding
from lessen.stored.pruned_embedding import PrunedEmbedding
from lessen.stored.quantized_embedding import QuantizedEmbedding

pytestmark = pytest.mark.skipif(not machine.available(), reason="the [kernels] extra is not installed, or not Linux")
ROWS = 90


@pytest.fixture(autouse=True)
def _every_lookup_is_large(monkeypatch):
    monkeypatch.setattr(kernels, "SMALLEST", 1)
    monkeypatch.setattr(kernels, "SHARE", 8)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def dense(shape: TableShape) -> nn.Module:
    weight = torch.randn(shape.rows, shape.dim, generator=generator())
    if shape.mode is None:
        return nn.Embedding(shape.rows, shape.dim, shape.padding_idx, _weight=weight)
    return nn.EmbeddingBag(
        shape.rows, shape.dim, mode=shape.mode, padding_idx=shape.padding_idx, _weight=weight,
        include_last_offset=shape.include_last_offset,
    )  # fmt: skip


def quantised(bits):
    return lambda shape: QuantizedEmbedding.from_dense(dense(shape), bits)


def half(dtype):
    return lambda shape: HalfEmbedding.from_dense(dense(shape), dtype)


def product(centroids, width):
    def build(shape):
        made = ProductQuantizedEmbedding(shape, max(1, shape.dim // width), centroids)
        codes = torch.randint(0, centroids, (shape.rows, made.groups), generator=generator())
        book = torch.randn(made.groups, centroids, made.width, generator=generator())
        return ProductQuantizedEmbedding.from_codes(shape, codes, book).requires_grad_(False)

    return build


def pruned(inner):
    def build(shape):
        position = torch.randint(0, 20, (shape.rows,), dtype=torch.int32, generator=generator())
        made = PrunedEmbedding.from_dense(shape, torch.randn(20, shape.dim, generator=generator()), position)
        if inner:
            made.table = inner(TableShape(20, shape.dim))
        return made.requires_grad_(False)

    return build


FORMS = {
    "int8": quantised(8), "int4": quantised(4), "int2": quantised(2), "fp16": half("fp16"), "bf16": half("bf16"),
    "product of 256": product(256, 4), "product of 200": product(200, 3), "product of 16": product(16, 2),
    "product of 11": product(11, 4), "pruned": pruned(None), "pruned int4": pruned(quantised(4)),
    "pruned product": pruned(product(256, 4)),
}  # fmt: skip


def agree(table: StoredEmbedding, *given) -> None:
    with torch.no_grad():
        found, expected = table.compiled(*given), table.plain(*given)
    assert found is not None
    assert found.is_contiguous()
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=2e-6, rtol=1e-6), (found - expected).abs().max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dim", [1, 7, 67])
def test_rows_are_those_of_torch(form, dim):
    table = FORMS[form](TableShape(ROWS, dim, padding_idx=3))
    for kind in (torch.int32, torch.int64):
        ids = torch.randint(0, ROWS, (41,), dtype=kind, generator=generator())
        ids[5] = 3
        agree(table, ids, None, None)
        agree(table, ids[:40].view(2, 5, 4), None, None)
        agree(table, ids[:40].view(8, 5).t(), None, None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding", [None, 3])
def test_bags_are_those_of_torch(form, mode, padding):
    torch.set_num_threads(1 if padding is None else 2)
    for dim, kind in ((5, torch.int32), (16, torch.int64)):
        ids = torch.randint(0, ROWS, (60,), dtype=kind, generator=generator())
        ids[:2] = 3
        table = FORMS[form](TableShape(ROWS, dim, padding, mode))
        agree(table, ids.view(12, 5), None, None)
        agree(table, ids.view(60, 1), None, None)
        agree(table, ids, torch.tensor([0, 2, 2, 30, 60]), None)
        last = FORMS[form](TableShape(ROWS, dim, padding, mode, include_last_offset=True))
        agree(last, ids, torch.tensor([0, 0, 7, 31, 60]), None)
        if mode == "sum":
            weights = torch.randn(60, generator=generator())
            agree(table, ids, torch.tensor([0, 2, 2, 30]), weights)
            agree(table, ids.view(12, 5), None, weights.view(12, 5))
            agree(table, ids.view(60, 1), None, weights.view(60, 1))


@given(bits=st.sampled_from([8, 4, 2]), dim=st.integers(1, 150), count=st.integers(1, 40), seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_any_width_and_number_of_ids(bits, dim, count, seed):
    table = QuantizedEmbedding.from_dense(nn.Embedding(9, dim), bits)
    agree(table, torch.randint(0, 9, (count,), generator=torch.Generator().manual_seed(seed)), None, None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [-1, ROWS, 2**31 - 1, 2**60, -(2**62)])
def test_ids_outside_the_table_are_refused_and_never_read(form, bad):
    table = FORMS[form](TableShape(ROWS, 8))
    bags = FORMS[form](TableShape(ROWS, 8, mode="sum"))
    ids = torch.randint(0, ROWS, (50,), generator=generator())
    ids[30] = bad
    assert table.compiled(ids, None, None) is None
    assert bags.compiled(ids.view(5, 10), None, None) is None
    with pytest.raises((IndexError, RuntimeError)):
        table(ids)


@pytest.mark.parametrize("offsets", [[1, 3], [0, 9, 3], [0, 51], [0, -5], [0, 2**60], [0, 2, -(2**60)]])
def test_offsets_that_make_no_sense_are_left_to_torch(offsets):
    table = FORMS["int8"](TableShape(ROWS, 8, mode="sum"))
    assert table.compiled(torch.zeros(50, dtype=torch.int64), torch.tensor(offsets), None) is None


def test_stored_indices_outside_their_tables_are_refused():
    ids = torch.arange(50)
    table = FORMS["pruned int4"](TableShape(ROWS, 8))
    for wrong in (-1, 20, 2**31 - 1):
        table.position[7] = wrong
        assert table.compiled(ids, None, None) is None
    coded = FORMS["product of 200"](TableShape(ROWS, 9))
    coded.codes[7, 1] = 200
    assert coded.compiled(ids, None, None) is None
    assert coded.compiled(ids[8:], None, None) is not None


def test_operators_of_torch_answer_where_gradients_or_observers_need_them():
    ids = torch.arange(50)
    table = FORMS["pruned"](TableShape(ROWS, 8))
    assert table.compiled(ids, None, None) is not None
    assert table.compiled(ids[:0], None, None) is None
    assert table.compiled(ids.short(), None, None) is None
    assert FORMS["fp16"](TableShape(ROWS, 8, mode="max")).compiled(ids.view(5, 10), None, None) is None
    table.requires_grad_(True)
    assert table.compiled(ids, None, None) is None
    table(ids).sum().backward()
    assert table.table.weight.grad is not None
    with torch.no_grad():
        assert table.compiled(ids, None, None) is not None
        assert torch.equal(torch.vmap(table)(ids.view(5, 10)), table(ids.view(5, 10)))
        table.table.register_forward_hook(lambda module, given, found: found * 2)
        assert torch.equal(table(ids), table.plain(ids, None, None))


def test_weights_that_want_gradients_get_them():
    table = FORMS["pruned"](TableShape(ROWS, 8, mode="sum"))
    weights = torch.ones(5, 10, requires_grad=True)
    table(torch.arange(50).view(5, 10), None, weights).sum().backward()
    assert weights.grad is not None


def test_tracing_and_exporting_record_torch_operators():
    table, ids = FORMS["int4"](TableShape(ROWS, 8)), torch.arange(50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(table, (ids,))
    other = ids.flip(0)
    assert torch.equal(traced(other), table(other))
    assert torch.equal(torch.export.export(FORMS["fp16"](TableShape(ROWS, 8)), (ids,)).module()(other),
                       FORMS["fp16"](TableShape(ROWS, 8))(other))  # fmt: skip


def test_a_forked_child_answers_after_its_parent_used_threads():
    torch.set_num_threads(2)
    table, ids = FORMS["int4"](TableShape(ROWS, 8)), torch.randint(0, ROWS, (64,))
    expected = table(ids)
    child = os.fork()
    if child == 0:
        same = torch.equal(table.compiled(ids, None, None), expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_small_lookups_compile_nothing(monkeypatch):
    monkeypatch.setattr(kernels, "SMALLEST", 1024)
    monkeypatch.setattr(machine, "compiled", None)
    table = FORMS["int4"](TableShape(ROWS, 13))
    assert table.compiled(torch.arange(50), None, None) is None
