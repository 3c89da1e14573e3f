from __future__ import annotations

import json

import pytest
import torch

from lessen import cli
from lessen.measure.profile import profile
from lessen.methods import builtin_methods
from lessen.methods.embeddings._shared.budget import table_bytes
from lessen.methods.embeddings.hash import HashTables
from lessen.methods.sites import state_bytes
from lessen.recipe import Recipe
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions
from lessen.testing.toys import TableTask


@pytest.fixture(scope="module")
def known():
    task = SyntheticClicks(SyntheticOptions(rows=3000, fields=3, rows_per_field=300))
    task.settings = task.settings.__class__(epochs=1)
    torch.manual_seed(0)
    return task, task.build()


def test_rows_read_are_those_of_the_train_split(known):
    task, model = known
    tables = profile(model, task).tables
    ids = task.splits["train"].ids.long()
    assert [use.field for use in tables] == ["field0", "field1", "field2"]
    for number, use in enumerate(tables):
        counts = ids[:, number].bincount().sort(descending=True).values
        assert use.lookups == len(ids)
        assert use.rows_read == int((counts > 0).sum())
        assert use.head_share == pytest.approx(float(counts[:3].sum()) / len(ids))
        assert int(counts[: use.head_rows].sum()) >= 0.9 * len(ids) > int(counts[: use.head_rows - 1].sum())


def test_the_forecast_of_a_method_that_trains_is_what_it_leaves(known):
    task, model = known
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = {one.method: one for one in profile(model, task).forecasts}
    small, _ = Recipe([HashTables()]).apply(model, task)
    assert found["emb-hash"].bytes == state_bytes(small)
    for name in ("emb-cafe", "emb-cel", "emb-weighted-hash", "emb-lsq", "emb-tt"):
        assert 0 < found[name].bytes < state_bytes(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


OWN = """
from torch import nn

import lessen
from lessen.testing.toys import TableTask


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.users = nn.Embedding(3000, 8)
        self.words = nn.EmbeddingBag(2000, 16)


class Mine(TableTask):
    name = "mine"


def broken():
    raise ValueError("no luck")


number = 3
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "my_own_code.py"
    path.write_text(OWN)
    return path


def run(capsys, *arguments):
    capsys.readouterr()
    status = cli.execute([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_any_module_is_profiled_without_a_task(capsys, own):
    status, text, _ = run(capsys, "profile", f"{own}:Net", "--json")
    found = json.loads(text)
    assert status == 0
    assert [(p["path"], p["rows"], p["width"], p["bytes"]) for p in found["modules"]] == [
        ("words", 2000, 16, 128000),
        ("users", 3000, 8, 96000),
    ]
    forecast = {one["method"]: one for one in found["forecasts"]}
    assert forecast["emb-rowwise-quant"]["bytes"] == 3000 * 16 + 2000 * 24
    assert forecast["emb-hash"]["bytes"] == 112064  # half of the rows, and two hashes
    assert "give a task" in forecast["emb-pq-post"]["remark"]


def test_your_own_task_is_profiled_and_compressed_from_the_command_line(capsys, own, tmp_path):
    status, text, _ = run(capsys, "profile", "--task", f"{own}:Mine")
    assert status == 0
    assert "rows that the train split reads" in text
    task, step = f"{own}:Mine", "emb-rowwise-quant:bits=4"
    status, text, _ = run(capsys, "compress", "reference", "-t", task, "-s", step, "-o", tmp_path / "small", "--json")
    assert status == 0
    assert json.loads(text)["stored_bytes"] == sum(
        (tmp_path / "small" / name).stat().st_size for name in ("model.safetensors", "structure.json")
    )
    status, text, _ = run(capsys, "profile", tmp_path / "small", "--task", task, "--json")
    table = json.loads(text)["modules"]
    assert ("items", "quantized-embedding", 1500, 12) in {(p["path"], p["kind"], p["rows"], p["width"]) for p in table}
    assert {use["path"] for use in json.loads(text)["tables"]} == {"items", "tags"}  # stored tables are counted too


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("broken", "ValueError: no luck"),
        ("number", "is a int"),
        ("Nett", "did you mean 'Net'"),
        ("Mine", "is a Mine"),
    ],
)
def test_mistakes_in_your_own_code_are_one_line(capsys, own, name, match):
    status, _, talk = run(capsys, "profile", f"{own}:{name}")
    assert (status, talk.count("\n")) == (2, 1)
    assert match in talk


def test_forecasts_equal_what_is_stored_and_the_smallest_share_can_be_asked_for():
    task = TableTask()
    model = task.reference(0)
    found = {one.method: one for one in profile(model, task).forecasts}
    for name in ("emb-pq-post", "emb-qr", "emb-tt", "emb-lsq", "emb-prune-rows"):
        cls = builtin_methods()[name]
        assert found[name].bytes == state_bytes(Recipe([cls()]).apply(model, task)[0])
        small, _ = Recipe([cls(share=found[name].smallest)]).apply(model, task)
        assert table_bytes(small) == pytest.approx(found[name].smallest * table_bytes(model), rel=0.02)
    assert found["emb-autodim"].bytes is None  # its search decides
    assert found["emb-autodim"].smallest < 0.2
