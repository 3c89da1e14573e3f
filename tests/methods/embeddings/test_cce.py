from __future__ import annotations

import pytest
import torch

from frozen_tables import assert_tables_learned
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.cce import ClusteredTables, recluster
from lessen.recipe import Recipe
from lessen.stored.tables.clustered_embedding import ClusteredEmbedding
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask


def test_clustering_keeps_rows_better_than_a_random_hash_does():
    table = ClusteredEmbedding(TableShape(600, 4), 2, 16)
    generator = torch.Generator().manual_seed(0)
    table.reset(0.1, generator)
    before = table.dequantise()
    recluster(table, generator)
    after = table.dequantise()
    error = float((after - before).square().mean())
    table.codes.copy_(torch.randint(0, 16, table.codes.shape, generator=generator))
    assert error < 0.3 * float((table.dequantise() - before).square().mean())
    assert error < 0.5 * float(before.square().mean())


def test_planted_clusters_are_found_exactly():
    table = ClusteredEmbedding(TableShape(300, 2), 1, 3)
    generator = torch.Generator().manual_seed(0)
    table.reset(0.0, generator)
    centres = torch.tensor([[0.0, 0.0], [5.0, 5.0], [-5.0, 5.0]])
    group = torch.randint(0, 3, (300,), generator=generator)
    table.codes.copy_(group.unsqueeze(1))
    with torch.no_grad():
        table.centres.weight.copy_(centres)
    recluster(table, generator)
    assert torch.allclose(table.dequantise(), centres[group], atol=1e-5)
    pairs = set(zip(group.tolist(), table.codes[:, 0].tolist(), strict=True))
    assert len(pairs) == 3


def test_trained_model_learns_and_counts_one_byte_a_chunk():
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([ClusteredTables()]).apply(model, task)
    assert result.items.codes.shape == (1500, 4)
    assert table_bytes(result) < 0.3 * table_bytes(model)
    assert ledger[0].findings["tables"]["items"]["clusters"] == 64
    assert_tables_learned(result, task)


@pytest.mark.parametrize("share", [0.35, 0.3, 0.2, 0.1])
def test_a_share_is_met_by_clusters(share):
    task = TableTask()
    model = task.reference(0)
    result, _ = Recipe([ClusteredTables(share=share)]).apply(model, task)
    assert table_bytes(result) == pytest.approx(share * table_bytes(model), rel=0.02)
