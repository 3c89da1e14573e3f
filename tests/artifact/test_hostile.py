"""Folders made to hang, to take memory, to reach the network or to end in a traceback: each is one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lessen import files
from lessen.artifact import folder as artifact
from lessen.artifact.structure import MAX_NAME
from lessen.errors import ArtifactError
from toy import ToyNet


@pytest.fixture
def saved(tmp_path):
    artifact.save(tmp_path / "small", ToyNet().eval(), ToyNet(), probe=torch.zeros(5, 2, dtype=torch.int64))
    return tmp_path / "small"


def reseal(path):
    entries = {
        item.name: {"sha256": files.sha256(item), "bytes": item.stat().st_size}
        for item in path.iterdir()
        if item.name != artifact.MANIFEST
    }
    (path / artifact.MANIFEST).write_text(json.dumps({"format": 1, "files": entries}))


def edit(path, **changes):
    content = json.loads((path / artifact.STRUCTURE).read_text())
    (path / artifact.STRUCTURE).write_text(json.dumps({**content, **changes}))
    reseal(path)


def refused(path, match, model=None, verb=artifact.verify):
    with pytest.raises(ArtifactError, match=match) as caught:
        verb(path, model=model or ToyNet())
    assert "\n" not in str(caught.value)


def put(kind, path):
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link"])
@pytest.mark.parametrize("name", [artifact.WEIGHTS, artifact.STRUCTURE, artifact.PROBE, artifact.MANIFEST])
def test_what_is_no_regular_file_is_refused_and_never_waited_for(saved, name, kind):
    put(kind, saved / name)
    refused(saved, f"{name}.*(not a regular file|must be a regular file)")


def test_sizes_in_the_manifest_are_compared(saved):
    content = json.loads((saved / artifact.MANIFEST).read_text())
    content["files"][artifact.WEIGHTS]["bytes"] += 1
    (saved / artifact.MANIFEST).write_text(json.dumps(content))
    refused(saved, "bytes, .* were recorded")


LARGE = {
    "rows": {"name": "ctr-synthetic", "rows": 10**9, "rows_per_field": 20, "fields": 2},
    "vocabulary": {"name": "ctr-synthetic", "rows": 300, "rows_per_field": 10**9, "fields": 64},
    "width": {"name": "ctr-synthetic", "rows": 300, "rows_per_field": 10**5, "dim": 10**6},
}
PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
from lessen.artifact.folder import verify
from lessen.errors import ArtifactError
for folder in sys.argv[1:]:
    try:
        verify(folder)
    except ArtifactError as error:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print("refused", peak < 1_500_000, folder, error)
"""


def test_a_task_that_asks_for_more_than_the_file_holds_is_refused_before_memory_is_taken(saved, tmp_path):
    folders = [str(shutil.copytree(saved, tmp_path / name)) for name in LARGE]
    for folder, task in zip(folders, LARGE.values(), strict=True):
        edit(Path(folder), task=task)
    done = subprocess.run([sys.executable, "-c", PROGRAM, *folders], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [["refused", "True", folder] for folder in folders], done.stderr[
        -500:
    ]


def test_an_artifact_that_names_a_data_set_downloads_nothing(saved, monkeypatch, tmp_path):
    monkeypatch.setenv("LESSEN_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(subprocess, "run", None)  # a download would call pip or npm
    edit(saved, task={"name": "ctr-movielens100k"})
    with pytest.raises(ArtifactError, match=r"movielens.*not downloaded here.*lessen data get.*pass the architecture"):
        artifact.load(saved)


def test_the_architecture_of_a_task_is_opened_without_its_data(tmp_path, monkeypatch):
    from lessen.tasks import get_task
    from lessen.tasks.ctr import synthetic

    task = get_task({"name": "ctr-synthetic", "rows": 300, "rows_per_field": 20, "fields": 2})
    model = task.build().eval()
    artifact.save(tmp_path / "a", model, model, task=task.describe(), probe=task.inputs(task.example_batch()))
    monkeypatch.setattr(synthetic, "_draw", None)
    assert artifact.verify(tmp_path / "a").probe == "equal"


def test_a_table_larger_than_memory_is_not_made_where_a_small_one_replaced_it(tmp_path):
    from lessen.stored.tables.embedding import TableShape
    from lessen.stored.tables.hashed_embedding import HashedEmbedding

    model = ToyNet().eval()
    model.left = HashedEmbedding(TableShape(2**36, 8), [50], 1, False)
    with torch.device("meta"):
        base = ToyNet()
        base.left = nn.Embedding(2**36, 8)
    artifact.save(tmp_path / "a", model, base)
    again = artifact.load(tmp_path / "a", model=base)
    assert again.left.table.weight.shape == (50, 8)


def test_repeated_records_are_refused_and_many_take_linear_time(saved):
    one = {"path": "hidden", "kind": "torch.Linear", "config": {"in_features": 16, "out_features": 16, "bias": True}}
    edit(saved, modules=[one, one])
    refused(saved, "hidden is recorded twice")
    many = [{**one, "path": "hidden" + ".a" * 200 + str(n)} for n in range(20_000)]
    edit(saved, modules=many)
    refused(saved, "no tensor|cannot be built|no module")
    edit(saved, modules=[{**one, "path": "a" * (MAX_NAME + 1)}])
    refused(saved, "512")


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        (lambda t: {"output": t["output"]}, "holds no inputs"),
        (lambda t: {k: v for k, v in t.items() if k != "output"}, "holds no outputs"),
        (lambda t: {"input.position.7": t["input.tensor"], "output": t["output"]}, "cannot be called"),
        (lambda t: {**t, "input.tensor": t["input.tensor"] + 10**6}, "cannot be called.*index out of range"),
        (lambda t: {**t, "input.tensor": t["input.tensor"].float()}, "cannot be called"),
        (lambda t: {**t, "output": t["output"].double()}, "float64 were recorded"),
        (lambda t: {**t, "output": t["output"][:2]}, r"\[2\] float32 were recorded"),
        (lambda t: {**t, "output": t["output"] * float("nan")}, "outputs differ"),
        (lambda t: {}, "holds no outputs"),
    ],
)
def test_probes_that_are_none(saved, tensors, match):
    save_file(tensors(load_file(saved / artifact.PROBE)), saved / artifact.PROBE)
    reseal(saved)
    refused(saved, match)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_probes_of_other_floating_types_are_verified_by_their_own_rounding(tmp_path, dtype):
    model = ToyNet().to(dtype).eval()
    artifact.save(tmp_path / "a", model, ToyNet(), probe=torch.randint(0, 64, (9, 2)))
    found = artifact.verify(tmp_path / "a", model=ToyNet())
    assert found.probe == "equal"
    assert artifact.load(tmp_path / "a", model=ToyNet()).hidden.weight.dtype == dtype
    tensors = load_file(tmp_path / "a" / artifact.PROBE)
    save_file(
        {**tensors, "output": tensors["output"] * (1 + 2 * torch.finfo(dtype).eps)}, tmp_path / "a" / artifact.PROBE
    )
    reseal(tmp_path / "a")
    assert artifact.verify(tmp_path / "a", model=ToyNet()).probe == "close"
    save_file({**tensors, "output": tensors["output"] + 0.5}, tmp_path / "a" / artifact.PROBE)
    reseal(tmp_path / "a")
    refused(tmp_path / "a", "outputs differ")


def test_outputs_that_are_infinite_may_be_equal(tmp_path):
    model = nn.Linear(2, 2)
    model.bias.data.copy_(torch.tensor([float("inf"), float("nan")]))
    artifact.save(tmp_path / "a", model, model, probe=torch.ones(1, 2))
    assert artifact.verify(tmp_path / "a", model=nn.Linear(2, 2)).probe == "equal"


def record(kind, config, path="hidden"):
    return [{"path": path, "kind": kind, "config": config}]


LINEAR = {"in_features": 16, "out_features": 16, "bias": True}


@pytest.mark.parametrize(
    ("modules", "match"),
    [
        (record("torch.Linear", {**LINEAR, "device": "meta"}), "takes no 'device'"),
        (record("torch.Linear", {**LINEAR, "dtype": "x"}), "takes no 'dtype'"),
        (
            record("torch.Embedding", {"num_embeddings": 64, "embedding_dim": 8, "padding_idx": 99}, "left"),
            "Padding_idx",
        ),
        (record("torch.Embedding", {"num_embeddings": 64, "embedding_dim": 8, "_freeze": True}, "left"), "takes no"),
        (record("torch.Linear", {"in_features": [[1]], "out_features": 16}), "whole numbers"),
        (record("torch.Sequential", {"length": 10**9}), "needs its length"),
        (record("tiered-embedding", {"num_embeddings": 64}, "left"), "cannot be built"),
        (record("token-reduction", {"reducer": "merge", "removed": [1]}, "token_reduction"), "has no place"),
    ],
)
def test_hostile_records_are_one_line(saved, modules, match):
    edit(saved, modules=modules)
    refused(saved, match)


def test_a_stored_class_that_raises_anything_is_one_line(saved, monkeypatch):
    from lessen.stored.base import STORED, StoredModule

    class Odd(StoredModule):
        kind = "test-odd"

        @classmethod
        def from_config(cls, config):
            raise LookupError if config.get("how") == "from_config" else ZeroDivisionError("by zero")

    monkeypatch.setitem(STORED, "test-odd", Odd)
    edit(saved, modules=record("test-odd", {"how": "from_config"}))
    refused(saved, "hidden: test-odd cannot be built: LookupError")
    edit(saved, modules=record("test-odd", {}))
    refused(saved, "by zero")


def test_steps_that_are_none_are_a_line(saved):
    from lessen.errors import ConfigError
    from lessen.recipe import Recipe

    for steps in ([None], [[]], [{}], [1], None, "x"):
        with pytest.raises(ConfigError):
            Recipe.parse({"steps": steps})


def test_files_of_a_later_format_are_no_part_of_the_first(saved):
    shutil.copy(saved / artifact.WEIGHTS, saved / "model-00001-of-00001.safetensors")
    reseal(saved)
    refused(saved, "not a file of an artifact")
