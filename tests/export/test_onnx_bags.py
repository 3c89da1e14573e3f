"""Pooled bags leave as ONNX: plain and compact tables, ids in rows or with offsets, and a DLRM of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lessen.errors import ConfigError
from lessen.export.onnx import export_onnx, serve
from lessen.export.onnx_bags import Bags, SingleRows, bag_of_each
from lessen.export.onnx_batch import first_examples
from lessen.stored.tables.half_embedding import HalfEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding

pytest.importorskip("onnxruntime")


def bag(mode="sum", padding=None, last=False):
    torch.manual_seed(0)
    return nn.EmbeddingBag(40, 6, mode=mode, padding_idx=padding, include_last_offset=last)


COMPACT = {
    "plain": lambda table: table,
    "int8": lambda table: QuantizedEmbedding.from_dense(table, 8),
    "int4": lambda table: QuantizedEmbedding.from_dense(table, 4),
    "half": lambda table: HalfEmbedding.from_dense(table, "fp16"),
}


class Dlrm(nn.Module):
    """Dense features and two tables of bags with offsets of their own."""

    def __init__(self, make, mode="sum", last=False):
        super().__init__()
        self.bottom, self.top = nn.Linear(3, 6), nn.Linear(18, 1)
        self.left, self.right = make(bag(mode, None, last)), make(bag(mode, 7, last))

    def forward(self, dense, left, left_offsets, right, right_offsets):
        parts = [self.bottom(dense), self.left(left, left_offsets), self.right(right, right_offsets)]
        return self.top(torch.cat(parts, 1)).squeeze(1)


def batch(last=False, lengths=((2, 0, 3, 1), (1, 1, 4, 0))):
    draw = torch.Generator().manual_seed(1)
    made = {"dense": torch.randn(len(lengths[0]), 3, generator=draw)}
    for name, counts in zip(("left", "right"), lengths, strict=True):
        ends = torch.tensor(counts).cumsum(0)
        made[name] = torch.randint(0, 40, (int(ends[-1]),), generator=draw)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
        made[f"{name}_offsets"] = starts if last else starts[:-1]
    made["right"][0] = 7
    return made


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("last", [False, True])
def test_a_compressed_dlrm_leaves(tmp_path: Path, mode, last):
    model = Dlrm(COMPACT["int4"], mode, last).eval()
    assert export_onnx(model, batch(last), tmp_path / "model.onnx") < 1e-4
    other = batch(last, ((1, 5, 0, 0, 2, 3), (0, 0, 3, 1, 1, 2)))  # other lengths, and as many bags as it likes
    with torch.no_grad():
        wanted = model(**other)
    assert torch.allclose(torch.from_numpy(serve(tmp_path / "model.onnx")(other)), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", COMPACT)
def test_ids_in_rows_pool_as_the_table_does(tmp_path: Path, kind):
    model = nn.Sequential(COMPACT[kind](bag("mean", 7)), nn.Linear(6, 2)).eval()
    ids = torch.randint(0, 40, (9, 5), generator=torch.Generator().manual_seed(2))
    ids[2], ids[3, 1:] = 7, 7
    assert export_onnx(model, ids, tmp_path / "model.onnx") < 1e-4


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 7])
def test_the_form_equals_torch(mode, padding):
    table = bag(mode, padding)
    form = Bags(SingleRows(table), table)
    ids = torch.randint(0, 40, (9, 5), generator=torch.Generator().manual_seed(2))
    ids[2], ids[3, 1:] = 7, 7
    assert torch.allclose(form(ids), table(ids), atol=1e-6)
    if mode == "max":
        with pytest.raises(ConfigError, match="bags by max"):
            form(ids.flatten(), torch.tensor([0, 4]))
        return
    offsets = torch.tensor([0, 0, 7, 30, 30, 45])
    assert torch.allclose(form(ids.flatten(), offsets), table(ids.flatten(), offsets), atol=1e-5)
    if mode == "sum":
        weights = torch.rand(9, 5)
        assert torch.allclose(form(ids, None, weights), table(ids, None, weights), atol=1e-6)


def test_bags_are_counted_from_their_offsets():
    assert bag_of_each(torch.zeros(6), torch.tensor([0, 0, 2, 5, 6])).tolist() == [1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("last", [False, True])
def test_the_first_examples_keep_their_bags(last):
    given = batch(last)
    few = first_examples(given, 3)
    assert few["left_offsets"].tolist() == ([0, 2, 2, 5] if last else [0, 2, 2])
    assert few["left"].tolist() == given["left"][:5].tolist()
    assert len(first_examples(given, 9)["dense"]) == 9


def test_a_table_that_renormalises_while_it_runs_is_refused(tmp_path: Path):
    model = nn.Sequential(nn.EmbeddingBag(9, 4, max_norm=1.0, mode="sum"))
    with pytest.raises(ConfigError, match="max_norm"):
        export_onnx(model, torch.zeros(3, 2, dtype=torch.int64), tmp_path / "model.onnx")
