"""Pruned vocabularies written back: the same predictions from dense ids and no map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from lessen.cli import execute
from lessen.data.encode import SplitRule, encode_logs
from lessen.data.folder import Dataset
from lessen.data.schema import FieldSchema, Schema
from lessen.errors import ConfigError
from lessen.export.renumber import renumber
from lessen.recipe import Recipe, parse_step
from lessen.stored.fields import FieldEmbedding
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding
from lessen.task import call_model
from lessen.tasks import get_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 3000 rows with two large fields, a small one and a number."""
    root = tmp_path_factory.mktemp("renumber")
    generator = np.random.default_rng(0)
    user, item = (np.floor(400 ** generator.random(3000)).astype(int) for _ in range(2))
    frame = pl.DataFrame(
        {
            "label": (generator.random(3000) < 0.2 + 0.5 * (user % 2)).astype(int),
            "price": generator.random(3000),
            "user": [f"u{i}" for i in user],
            "item": [f"i{i}" for i in item],
            "day": [f"d{i % 7}" for i in user],
        }
    )
    frame.write_csv(root / "log.csv")
    names = [FieldSchema(name=name, kind="categorical") for name in ("user", "item", "day")]
    fields = (FieldSchema(name="label", kind="label"), FieldSchema(name="price", kind="numeric"), *names)
    encode_logs([str(root / "log.csv")], Schema(fields=fields), root / "data", SplitRule())
    return root / "data"


def trained(folder, steps, **options):
    task = get_task({"name": "ctr-logs", "data": str(folder), "model": "deepfm", "dim": 7, "epochs": 2, **options})
    model, _ = Recipe([parse_step(step, "test") for step in steps]).apply(task.reference(0), task)
    return task, model


PRUNE = {"emb-prune-rows": {"keep": 0.4, "min_rows": 50, "fallback": "oov"}}


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([PRUNE], FieldEmbedding),
        ([{"emb-prune-rows": {**PRUNE["emb-prune-rows"], "index": "sorted"}}], FieldEmbedding),
        ([PRUNE, {"emb-rowwise-quant": {"bits": 4, "min_rows": 10}}], QuantizedEmbedding),
    ],
)
def test_predictions_are_equal_and_ids_are_rows(folder, tmp_path, steps, kind):
    task, model = trained(folder, steps)
    made = renumber(model, task, tmp_path / "small")
    assert made.largest_difference == 0.0
    assert made.rows_after < 0.6 * made.rows_before
    table = made.model.vectors.table
    assert type(table) is kind
    assert table.num_embeddings == made.rows_after
    encoder = Dataset(tmp_path / "small").encoder
    for row in ({"user": "u1", "item": "i3", "day": "d1"}, {"user": "u399", "item": "never seen", "day": "d0"}):
        raw = {**row, "price": 0.3}
        old, new = (
            call_model(network, {name: torch.from_numpy(value) for name, value in coder.encode_row(raw).items()})
            for network, coder in ((model.eval(), task.dataset.encoder), (made.model, encoder))
        )
        assert torch.equal(old, new)


def test_a_model_that_was_not_pruned_is_refused_and_nothing_is_written(folder, tmp_path):
    task, model = trained(folder, [{"emb-rowwise-quant": {"min_rows": 10}}])
    with pytest.raises(ConfigError, match="something for every id"):
        renumber(model, task, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_unknown_values_with_a_row_of_their_own_are_refused(folder, tmp_path):
    task, model = trained(folder, [PRUNE])
    with torch.no_grad():
        # as if the row of unknown users had been kept: it no longer equals the fallback
        position, first = model.vectors.table.position, task.layout.segment("user").start
        position[first] = int(position[0])
    with pytest.raises(ConfigError, match="'user': unknown and dropped values"):
        renumber(model, task, tmp_path / "small")


def test_the_verb_writes_an_artifact_that_opens_by_itself(folder, tmp_path, capsys):
    step = "emb-prune-rows:keep=0.4,min_rows=50,fallback=oov"
    task = f"ctr-logs:data={folder},model=deepfm,dim=7,epochs=1"
    assert execute(["compress", "reference", "--task", task, "--step", step, "--out", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    arguments = ["renumber", str(tmp_path / "a"), "--data", str(tmp_path / "d"), "--out", str(tmp_path / "b"), "--json"]
    assert execute(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows_after"] < found["rows_before"]
    assert found["largest_difference"] == 0.0
    assert execute(["verify", str(tmp_path / "b")]) == 0
