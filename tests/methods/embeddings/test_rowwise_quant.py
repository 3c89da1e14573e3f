from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.errors import BudgetError, NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.embeddings.half import HalfTables
from lessen.methods.embeddings.prune_rows import PruneRows
from lessen.methods.embeddings.rowwise_quant import Option, RowwiseQuantTables, cheapest
from lessen.recipe import Recipe
from lessen.stored.tables import rowwise
from lessen.stored.tables.half_embedding import HalfEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.testing.toys import TableTask


def compress(method, *tables):
    context = Context()
    return method.apply(nn.Sequential(*tables), None, context), context.findings


@pytest.mark.parametrize(("bits", "most"), [(8, 0.006), (4, 0.08), (2, 0.40)])
def test_relative_error_of_gaussian_rows_is_that_of_the_sheet(bits, most):
    table = nn.Embedding(2000, 16)
    made, findings = compress(RowwiseQuantTables(bits=bits), table)
    error = (made[0].dequantise() - table.weight.detach()).norm() / table.weight.detach().norm()
    assert most / 3 < float(error) < most
    assert findings["tables"]["0"] == {"bits": bits, "ranges": "plain" if bits == 8 else "least"}
    assert made[0].packed.numel() == 2000 * {8: 24, 4: 12, 2: 8}[bits]


def test_tables_that_must_be_left_alone_are_named_with_a_reason():
    tied = nn.Embedding(1500, 16)
    head = nn.Linear(16, 1500, bias=False)
    head.weight = tied.weight
    tables = (
        nn.Embedding(1500, 1),
        tied,
        head,
        nn.Embedding(10, 16),
        nn.EmbeddingBag(1500, 16, mode="max"),
        nn.Embedding(1500, 2),
        nn.Embedding(1500, 16, max_norm=1.0),
        nn.Embedding(1500, 16),
    )
    made, findings = compress(RowwiseQuantTables(bits=8), *tables)
    assert [type(module).__name__ for module in made] == [
        "Embedding",
        "Embedding",
        "Linear",
        "Embedding",
        "EmbeddingBag",
        "Embedding",
        "Embedding",
        "QuantizedEmbedding",
    ]
    reasons = findings["skipped"]
    for path, word in zip(
        "013456", ["one column", "tied", "min_rows", "max", "no fewer bytes", "max_norm"], strict=True
    ):
        assert word in reasons[path]
    with pytest.raises(NothingMatchedError, match="one column"):
        compress(RowwiseQuantTables(), nn.Embedding(1500, 1))


def test_rows_beyond_fp16_fall_back_to_8_bits():
    table = nn.Embedding(1500, 16)
    with torch.no_grad():
        table.weight[7, 0] = -80_000.0
    made, findings = compress(RowwiseQuantTables(bits=4), table)
    assert findings["tables"]["0"]["bits"] == 8
    assert bool(torch.isfinite(made[0].dequantise()).all())
    with pytest.raises(NothingMatchedError, match="65504"):
        compress(HalfTables(dtype="fp16"), table)
    made, _ = compress(HalfTables(dtype="bf16"), table)
    assert isinstance(made[0], HalfEmbedding)


def test_it_composes_with_pruning():
    task = TableTask()
    model = task.reference(0)
    result, ledger = Recipe([PruneRows(keep=0.8), RowwiseQuantTables(bits=4, min_rows=200)]).apply(model, task)
    assert isinstance(result.items.table, QuantizedEmbedding)
    assert ledger[0].bytes_before > ledger[1].bytes_before > ledger[1].bytes_after
    assert set(ledger[1].findings["tables"]) == {"items.table", "tags.table"}


def test_a_share_gives_each_table_its_own_bits_by_looked_up_error():
    task = TableTask()
    model = task.reference(0)
    total = (1500 + 1200) * 48
    for bits in ((8, 8), (4, 8), (8, 4), (4, 4), (2, 2)):
        sizes = [rows * rowwise.row_bytes(12, b) for rows, b in zip((1500, 1200), bits, strict=True)]
        wanted = sum(sizes) / total
        result, ledger = Recipe([RowwiseQuantTables(share=wanted)]).apply(model, task)
        assert ledger[0].findings["share"] == pytest.approx(wanted, rel=0.02)
        assert sorted([result.items.bits, result.tags.bits]) == sorted(bits)
    with pytest.raises(BudgetError, match="nearest it can reach"):
        Recipe([RowwiseQuantTables(share=0.9)]).apply(model, task)
    task.provides = frozenset()
    with pytest.raises(TaskError, match="calibration"):
        Recipe([RowwiseQuantTables(share=0.4)]).apply(model, task)


def test_many_tables_are_narrowed_where_error_is_cheapest():
    cheap = [Option(8, 100, 0.0), Option(4, 50, 1.0)]
    dear = [Option(8, 100, 0.0), Option(4, 50, 100.0)]
    chosen = cheapest([cheap] * 5 + [dear] * 7, 12 * 100 - 5 * 50)
    assert [option.bits for option in chosen] == [4] * 5 + [8] * 7
    assert [option.bits for option in cheapest([cheap, dear], 150)] == [4, 8]
