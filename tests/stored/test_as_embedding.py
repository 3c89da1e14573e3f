"""Every stored table is called as `nn.Embedding` and `nn.EmbeddingBag` are, and answers or refuses as they do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kernel_forms import ROWS
from lessen.stored import kernels
from lessen.stored.tables.embedding import TableShape
from stored_examples import TABLES

NO_MODES = {"two stored tiers"}


def made(form, mode=None, padding=None, last=False):
    shape = TableShape(ROWS, 8, padding, mode, last)
    table = TABLES[form](shape).eval()
    dense = table.dequantise()
    if mode is None:
        return table, nn.Embedding(ROWS, 8, padding, _weight=dense)
    return table, nn.EmbeddingBag(ROWS, 8, mode=mode, padding_idx=padding, include_last_offset=last, _weight=dense)


@pytest.mark.parametrize("form", TABLES)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_lookups_and_bags_are_those_of_torch(form, data):
    mode = data.draw(st.sampled_from([None, "sum", "mean"]))
    last = mode is not None and data.draw(st.booleans())
    padding = None if form in NO_MODES else data.draw(st.sampled_from([None, 3]))
    table, plain = made(form, mode, padding, last)
    kind = data.draw(st.sampled_from([torch.int32, torch.int64]))
    shape = data.draw(
        st.sampled_from([(12,), (3, 4), (2, 3, 2), (0, 4), ()] if mode is None else [(12,), (3, 4), (0, 4)])
    )
    numbers = data.draw(st.lists(st.integers(0, ROWS - 1), min_size=12, max_size=12))
    ids = torch.tensor(numbers, dtype=kind)[: torch.Size(shape).numel()].view(shape)
    with torch.no_grad():
        if mode is None:
            assert torch.allclose(table(input=ids), plain(input=ids), atol=1e-5)
            return
        ends = sorted(data.draw(st.lists(st.integers(0, ids.numel()), max_size=4)))
        offsets = None if ids.dim() == 2 else torch.tensor([0, *ends, *([12] if last else [])], dtype=kind)
        weights = torch.rand(ids.shape) if mode == "sum" and padding is None and data.draw(st.booleans()) else None
        found, expected = (one(input=ids, offsets=offsets, per_sample_weights=weights) for one in (table, plain))
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize("small", [True, False], ids=["torch", "kernel"])
def test_ids_outside_the_table_are_index_errors(form, small, monkeypatch):
    monkeypatch.setattr(kernels, "SMALLEST", 10_000 if small else 1)
    for mode in (None, "sum"):
        table, _ = made(form, mode)
        for bad in (-1, -(2**31), ROWS, 2**31 - 1):
            ids = torch.tensor([[1, 2], [bad, 3]])
            with torch.no_grad():
                if table.any_id and bad > 0:
                    assert table(ids).isfinite().all()
                    continue
                with pytest.raises(IndexError):
                    table(ids)


@pytest.mark.parametrize("form", TABLES)
def test_what_torch_refuses_is_refused(form):
    ids = torch.arange(6)
    table, _ = made(form)
    for kind in (torch.float32, torch.uint8, torch.int16):
        with pytest.raises(TypeError, match="int32 or int64"):
            table(ids.to(kind))
    with pytest.raises(TypeError, match="for bags"):
        table(ids, torch.tensor([0, 2]))
    table, _ = made(form, "sum")
    for offsets in ([1, 2], [0, 9], [0, 4, 2], [0, -5], [0, 2**40]):
        with pytest.raises(IndexError, match="offsets must rise"):
            table(ids, torch.tensor(offsets))
    for wrong in ((ids, None), (ids.view(1, 2, 3), None), (ids.view(2, 3), torch.tensor([0]))):
        with pytest.raises(ValueError):
            table(*wrong)
    with pytest.raises(ValueError, match="shape of the ids"):
        table(ids.view(2, 3), per_sample_weights=torch.ones(6))
