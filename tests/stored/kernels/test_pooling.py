"""Compiled lookups give what torch's operators give, for every layout, pooling and integer type, and refuse the rest."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kernel_forms import FORMS, ROWS, generator
from lessen.stored import kernels
from lessen.stored.kernels import machine
from lessen.stored.tables.embedding import StoredEmbedding, TableShape
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.stored.tables.tiered_embedding import TieredEmbedding

pytestmark = pytest.mark.skipif(not machine.available(), reason="the [kernels] extra is not installed, or not Linux")


@pytest.fixture(autouse=True)
def _every_lookup_is_large(monkeypatch):
    monkeypatch.setattr(kernels, "SMALLEST", 1)
    monkeypatch.setattr(kernels, "SHARE", 8)


def agree(table: StoredEmbedding, *given) -> None:
    with torch.no_grad():
        found, expected = table.compiled(*given), table.plain(*given)
    assert found is not None
    assert found.is_contiguous()
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=2e-6, rtol=1e-6), (found - expected).abs().max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dim", "kind"), [(7, torch.int32), (68, torch.int64)])
def test_rows_are_those_of_torch(form, dim, kind):
    table = FORMS[form](TableShape(ROWS, dim, padding_idx=3))
    ids = torch.randint(0, ROWS, (41,), dtype=kind, generator=generator())
    ids[5] = 3
    agree(table, ids, None, None)
    agree(table, ids[:40].view(2, 5, 4), None, None)
    agree(table, ids[:40].view(8, 5).t(), None, None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("mode", "padding", "dim", "kind"), [("mean", 3, 5, torch.int32), ("sum", None, 16, torch.int64)]
)
def test_bags_are_those_of_torch(form, mode, padding, dim, kind):
    torch.set_num_threads(1 if padding is None else 2)
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


INNER = ["int8", "int4", "int2", "fp16", "product of 256", "product of 200", "product of 16", "product of 11"]
OUTER = ["pruned", "two hashes", "hashed fields", "unified", "unified fields", "quotient"]


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", OUTER)
def test_composed_forms_are_those_of_torch(outer, inner):
    for dim in (7, 72):
        table = FORMS[outer](TableShape(ROWS, dim))
        for name, part in [*table.named_modules()]:
            if type(part) is nn.Embedding and part.num_embeddings > 0:
                holder, _, last = name.rpartition(".")
                made = FORMS[inner](TableShape(part.num_embeddings, part.embedding_dim))
                setattr(table.get_submodule(holder), last, made)
        ids = torch.randint(0, ROWS, (41,), generator=generator())
        with torch.no_grad():
            found = table.compiled(ids, None, None)
            assert found is None or torch.allclose(found, table.plain(ids, None, None), atol=2e-6, rtol=1e-6)
        assert found is not None


@pytest.mark.parametrize("hot", ["int4", "int2", "product of 200"])
@pytest.mark.parametrize("cold", ["product of 200", "mixed bits", "group columns", "bitmap", "narrow", "int4"])
def test_two_tiers_of_any_kind_agree_with_torch(cold, hot):
    for dim in (9, 72):
        table = TieredEmbedding(
            TableShape(ROWS, dim), 11, FORMS[cold](TableShape(ROWS, dim)), FORMS[hot](TableShape(11, dim))
        )
        table.hot_ids.copy_(torch.arange(2, 90, 8))
        ids = torch.randint(0, ROWS, (41,), generator=generator())
        with torch.no_grad():
            found = table.compiled(ids, None, None)
            assert found is None or torch.allclose(found, table.plain(ids, None, None), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("form", ["int4", "product of 16", "robe", "tiered", "bitmap", "mixed bits"])
def test_padding_counts_as_nothing_in_weighted_sums(form):
    table = FORMS[form](TableShape(ROWS, 8, 3, "sum"))
    ids = torch.tensor([3, 3, 7, 3, 20, 3])
    agree(table, ids, torch.tensor([0, 2, 2]), torch.tensor([1.0, -2.0, 0.5, 4.0, 3.0, 1.0]))
    agree(table, ids.view(6, 1), None, None)


@given(bits=st.sampled_from([8, 4, 2]), dim=st.integers(1, 150), count=st.integers(1, 40), seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_any_width_and_number_of_ids(bits, dim, count, seed):
    table = QuantizedEmbedding.from_dense(nn.Embedding(9, dim), bits)
    agree(table, torch.randint(0, 9, (count,), generator=torch.Generator().manual_seed(seed)), None, None)


ANY_ID = {
    "hashed",
    "two hashes",
    "hashed fields",
    "unified",
    "unified fields",
    "robe",
    "robe fields",
}
"""Forms that answer ids behind the last, by arithmetic: then both ways say the same."""


@pytest.mark.parametrize("form", FORMS)
def test_ids_outside_the_table_are_refused_and_never_read(form):
    ids = torch.randint(0, ROWS, (50,), generator=generator())
    for mode in (None, "sum"):
        table, given = FORMS[form](TableShape(ROWS, 8, mode=mode)), ids if mode is None else ids.view(5, 10)
        for bad in (-1, ROWS, 2**31 - 1, 2**60, -(2**62)):
            ids[30] = bad
            try:
                found = table.compiled(given, None, None)
            except IndexError:
                found = None
            if form in ANY_ID and bad > 0 and found is not None:
                agree(table, given, None, None)
            else:
                assert found is None, bad


@pytest.mark.parametrize("form", ["int8", "int4", "pruned int4", "product of 256", "quotient", "tiered int4"])
def test_torch_says_what_is_wrong_with_an_id(form):
    for bad in (-1, ROWS, 2**40):
        with pytest.raises((IndexError, RuntimeError)):
            FORMS[form](TableShape(ROWS, 8))(torch.tensor([1, bad]))


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
    for form, name in (("bitmap", "ranks"), ("narrow", "ranks"), ("mixed bits", "starts"), ("group columns", "starts")):
        for wrong in (-5, 2**30, *([2**63 - 1, -(2**63)] if name == "starts" else [])):
            table = FORMS[form](TableShape(ROWS, 9))
            getattr(table, name)[0] = wrong
            assert table.compiled(ids, None, None) is None, (form, wrong)
    kinds = FORMS["mixed bits"](TableShape(ROWS, 9))
    kinds.classes[3] = 255
    assert kinds.compiled(ids, None, None) is None
    robe = FORMS["robe"](TableShape(ROWS, 8))
    for wrong in (-1, 2**63 - 1, 12345 - 2**61):
        robe.constants.fill_(wrong)
        if robe.compiled(ids, None, None) is not None:
            agree(robe, ids, None, None)


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
    assert torch.equal(
        torch.export.export(FORMS["fp16"](TableShape(ROWS, 8)), (ids,)).module()(other),
        FORMS["fp16"](TableShape(ROWS, 8))(other),
    )


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
