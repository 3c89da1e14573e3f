from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.errors import NothingMatchedError
from lessen.method import Context
from lessen.methods.embeddings.dedup import DedupRows
from lessen.methods.sites import module_bytes
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding


def planted(noise=0.0):
    table = nn.Embedding(1000, 16)
    with torch.no_grad():
        table.weight[600:] = table.weight[torch.arange(400) % 50]
        table.weight[600:] += noise * torch.randn(400, 16)
    return table


def test_planted_copies_are_all_found_and_nothing_is_lost():
    table = planted()
    context = Context()
    made = DedupRows(bits=32).apply(nn.Sequential(table), None, context)[0]
    assert context.findings["tables"]["0"] == {"distinct": 600, "of": 1000}
    assert torch.equal(made.dequantise(), table.weight.detach())


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_result_equals_the_quantised_table_bit_for_bit(bits):
    table = planted()
    made = DedupRows(bits=bits).apply(nn.Sequential(table), None, Context())[0]
    whole = QuantizedEmbedding.from_dense(table, bits, "greedy" if bits == 2 else "plain")
    assert torch.equal(made.dequantise(), whole.dequantise())
    assert len(made.table.packed) == 600


def test_rows_that_differ_a_little_are_equal_only_when_quantised_alike():
    with pytest.raises(NothingMatchedError, match="1000 of 1000 rows are distinct"):
        DedupRows(bits=32).apply(nn.Sequential(planted(1e-3)), None, Context())


@pytest.mark.parametrize(("bits", "row"), [(32, 64), (8, 24), (4, 12), (2, 8)])
def test_the_bytes_are_those_of_the_distinct_rows_and_a_map(bits, row):
    made = DedupRows(bits=bits).apply(nn.Sequential(planted()), None, Context())[0]
    assert module_bytes(made) == 600 * row + 4 * 1000
    assert len(made.position.unique()) == 600
    assert torch.equal(made.position[600:], made.position[torch.arange(400) % 50])
    ids = torch.randint(0, 1000, (7, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(ids), made.dequantise()[ids])


@pytest.mark.parametrize(("copies", "pays"), [(62, False), (63, True)])
def test_it_pays_from_the_share_of_copies_at_which_the_map_is_earned_back(copies, pays):
    table = nn.Embedding(1000, 16)
    with torch.no_grad():
        table.weight[1000 - copies :] = table.weight[:copies]
    model, context = nn.Sequential(table), Context()
    if pays:
        # 64 bytes a row: more than 4 / 64 of the rows must be copies
        assert module_bytes(DedupRows(bits=32).apply(model, None, context)[0]) == 937 * 64 + 4000 < 64_000
    else:
        with pytest.raises(NothingMatchedError, match="would take 64032 bytes instead of 64000"):
            DedupRows(bits=32).apply(model, None, context)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_within_a_fraction_of_a_level_merge_and_stay_within_that_of_their_values(bits):
    generator = torch.Generator().manual_seed(0)
    table, levels = nn.Embedding(400, 16), 2**bits - 1
    with torch.no_grad():
        # grid points of [0, 1], both ends among them: small noise inside cannot move a level
        grid = torch.randint(0, levels + 1, (100, 16), generator=generator)
        grid[:, 0], grid[:, 1] = 0, levels
        noise = 0.2 * torch.rand(400, 16, generator=generator) * (torch.arange(16) > 1)
        table.weight.copy_(((grid.repeat(4, 1) + noise).clamp(max=levels)) / levels)
    context = Context()
    made = DedupRows(bits=bits).apply(nn.Sequential(table), None, context)[0]
    assert context.findings["tables"]["0"]["distinct"] == len(grid.unique(dim=0)) == 100
    assert torch.equal(made.dequantise()[:100], made.dequantise()[300:])
    assert float((made.dequantise() - table.weight.detach()).abs().max()) * levels < 0.21
