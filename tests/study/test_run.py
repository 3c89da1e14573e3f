"""Running studies: the files, the same results everywhere, failures that cost only themselves, and resuming."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from breaking_files import Unsynced
from lessen import files
from lessen.artifact import folder as artifact
from lessen.errors import OutputError, TaskError
from lessen.frontier import Frontier
from lessen.frontier.seal import unsealed
from lessen.measure.record import measure_quality
from lessen.methods.embeddings.half import HalfTables
from lessen.metrics.storage import read_outcomes
from lessen.recipe import Recipe
from lessen.study import MeasureOptions, Study, run
from lessen.study.engine import InlineEngine, ProcessEngine, RayEngine
from lessen.train.settings import FitSettings
from study_tools import IMPOSSIBLE, TEXT, settled, temporaries, write
from toy import ToyTask

ONE = TEXT.replace("[0, 1]", "[0]")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole study, with a recipe that fails, run in this process."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("study")
    whole = (TEXT + IMPOSSIBLE).replace(", peak_memory: false, baselines: false", "")
    study = Study.load(write(folder / "study.yaml", whole))
    return study, run(study, folder / "out")


def test_every_recipe_and_seed_is_measured_in_order(finished):
    study, result = finished
    assert [(record["recipe"], record["seed"]) for record in result.records] == [
        (recipe.name, seed) for recipe, seed in study.runs()
    ]
    record = result.records[0]
    assert {"study", "task", "recipe", "recipe_hash", "seed", "steps", "quality", "quality_ci", "cost", "reference",
            "env", "data_fingerprint", "status", "error"} <= set(record)  # fmt: skip
    assert record["cost"]["stored_bytes"] < record["reference"]["cost"]["stored_bytes"]
    assert record["cost"]["latency_ratio"] > 0
    assert record["lower_is_better"] == ["logloss"]


def test_the_files_are_those_of_the_contract(finished):
    _, result = finished
    present = {path.name for path in result.out.iterdir()}
    assert {
        "study.yaml",
        "measurements.jsonl",
        "outcomes",
        "artifacts",
        "reference",
        "runs",
        "noise.json",
        "notes.json",
    } <= present
    lines = (result.out / "measurements.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.records
    assert temporaries(result.out) == []
    noise = json.loads((result.out / "noise.json").read_text())
    assert noise["latency_ratio_ci"][0] <= noise["latency_ratio"] <= noise["latency_ratio_ci"][1]
    assert noise["quality"] == {"auc": [0.0, 0.0], "logloss": [0.0, 0.0]}


def test_peak_memory_and_baselines_stand_beside(finished):
    pytest.importorskip("sklearn")
    _, result = finished
    assert result.records[0]["cost"]["peak_rss_bytes"] > 10**7
    assert result.records[0]["reference"]["cost"]["peak_rss_bytes"] > 10**7
    baselines = unsealed(json.loads((result.out / "baselines.json").read_text()))
    assert all(0.3 < values["auc"] <= 1 for values in baselines.values())
    assert len(baselines) >= 2


def test_a_failing_recipe_costs_only_itself(finished):
    _, result = finished
    assert {record["recipe"] for record in result.failed} == {"impossible"}
    failed = result.failed[0]
    assert "found nothing to act on" in failed["error"]
    assert failed["quality"] == {}
    assert failed["steps"][0]["family"] == "embeddings"
    assert failed["reference"]["quality"]["auc"] > 0


def test_what_is_on_disk_is_what_was_measured(finished):
    study, result = finished
    record = result.records[0]
    place = result.out / "artifacts" / "int8-0"
    kept = artifact.load(place)
    assert measure_quality(study.task, kept).values == record["quality"]
    assert artifact.verify(place).stored_bytes == record["cost"]["stored_bytes"]
    assert json.loads((place / "measurement.json").read_text()) == record
    outcomes = read_outcomes(result.out / "outcomes" / "int8-0.safetensors")
    np.testing.assert_array_equal(outcomes["score"], study.task.predictions(kept)[0])
    assert study.task.metrics["auc"](outcomes) == record["quality"]["auc"]


def test_the_frontier_reads_it(finished):
    _, result = finished
    frontier = Frontier.load(result.out)
    assert len(frontier.measured) == 2
    assert frontier.margin == 0.01
    assert frontier["int8"].difference["auc"].low is not None


@pytest.mark.slow
def test_processes_give_the_same_as_this_process(finished, tmp_path):
    study, result = finished
    run(study, tmp_path / "out", engine=ProcessEngine(2))
    assert settled(tmp_path / "out") == settled(result.out)
    for path in sorted(result.out.glob("predictions/*")) + sorted(result.out.glob("artifacts/*/model.safetensors")):
        assert (tmp_path / "out" / path.relative_to(result.out)).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_ray_gives_the_same_as_this_process(finished, tmp_path):
    pytest.importorskip("ray")
    study, result = finished
    run(study, tmp_path / "out", engine=RayEngine(2))
    assert settled(tmp_path / "out") == settled(result.out)
    for path in sorted(result.out.glob("predictions/*")) + sorted(result.out.glob("artifacts/*/model.safetensors")):
        assert (tmp_path / "out" / path.relative_to(result.out)).read_bytes() == path.read_bytes()


def test_resuming_a_finished_study_changes_no_byte(tmp_path):
    study = Study.load(write(tmp_path / "study.yaml", ONE))
    run(study, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*") if path.name != "study.yaml"}
    text = (tmp_path / "out" / "measurements.jsonl").read_bytes()
    run(study, tmp_path / "out", resume=True)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*") if path.name != "study.yaml"}
    assert after == before
    assert (tmp_path / "out" / "measurements.jsonl").read_bytes() == text


def test_added_recipes_and_seeds_leave_what_was_measured(tmp_path):
    run(Study.load(write(tmp_path / "study.yaml", ONE)), tmp_path / "out")
    before = [json.loads(line) for line in (tmp_path / "out" / "measurements.jsonl").read_text().splitlines()]
    more = TEXT + "  - name: half\n    steps: [{emb-half: {}}]\n"
    result = run(Study.load(write(tmp_path / "study.yaml", more)), tmp_path / "out", resume=True)
    assert len(result.records) == 6
    assert [record for record in result.records if record["seed"] == 0 and record["recipe"] != "half"] == before


def test_an_output_folder_is_never_mixed(tmp_path):
    out = tmp_path / "out"
    study = Study.load(write(tmp_path / "study.yaml", ONE))
    run(study, out)
    with pytest.raises(OutputError, match=r"2 of 2 runs finished\); add --resume"):
        run(study, out)
    other = Study.load(write(tmp_path / "study.yaml", ONE.replace("bits: 8", "bits: 4")))
    with pytest.raises(OutputError, match="different study .*'int8' changed"):
        run(other, out, resume=True)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other files"):
        run(study, full)
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]
    with pytest.raises(OutputError, match="cannot write"):
        run(study, tmp_path / "study.yaml")


def test_two_runs_in_one_folder_are_refused(tmp_path):
    study = Study.load(write(tmp_path / "study.yaml", ONE))

    class Second(InlineEngine):
        def outcomes(self, function, items):
            with pytest.raises(OutputError, match="another lessen run is working"):
                run(study, tmp_path / "out", resume=True)
            yield from super().outcomes(function, items)

    run(study, tmp_path / "out", engine=Second())


def test_a_reference_that_cannot_be_judged_ends_the_study(tmp_path):
    class OneClass(ToyTask):
        def __init__(self):
            super().__init__(examples=800)
            self.label = torch.ones_like(self.label)

    study = Study("one class", OneClass(), [Recipe([], name="as it is")], seeds=(0,))
    with pytest.raises(TaskError, match="seed 0.*AUC needs both classes"):
        run(study, tmp_path / "out")


def test_a_fault_in_a_method_is_one_line_and_its_trace_is_kept(tmp_path, monkeypatch):
    def fault(self, model, task, context):
        raise ZeroDivisionError("a fault\nof mine")

    study = Study("mine", ToyTask(examples=800), [Recipe([HalfTables()], name="half")], seeds=(0,))
    monkeypatch.setattr(HalfTables, "apply", fault)
    result = run(study, tmp_path / "out")
    assert result.records[0]["error"] == "ZeroDivisionError: a fault of mine"
    assert "Traceback" in (tmp_path / "out" / "errors" / "half-0.txt").read_text()


@pytest.mark.slow
def test_a_disk_that_fails_ends_the_study_and_a_resume_repairs_it(tmp_path, monkeypatch):
    """The n-th rename fails, for all n: the old or the new state is left, and resuming gives what a quiet run gives."""
    options = MeasureOptions(rounds=8, peak_memory=False)
    task = ToyTask(examples=400, rows=32, batch=100)
    task.settings = FitSettings(epochs=1)
    study = Study("faults", task, [Recipe([HalfTables()], name="half")], seeds=(0,), measure=options)
    run(study, tmp_path / "quiet")
    expected, number = settled(tmp_path / "quiet"), 0
    while True:
        out = tmp_path / f"fault-{number}"
        layer = FailAt(number)
        monkeypatch.setattr(files, "FILES", layer)
        try:
            run(study, out)
        except OutputError as error:
            assert "No space left" in str(error)
        monkeypatch.setattr(files, "FILES", Unsynced())
        run(study, out, resume=True)
        assert settled(out) == expected
        assert temporaries(out) == []
        if layer.renames <= number:
            break
        number += 1
    assert number > 10


class FailAt(Unsynced):
    def __init__(self, number: int) -> None:
        self.number, self.renames = number, 0

    def rename(self, source, target):
        self.renames += 1
        if self.renames - 1 == self.number:
            raise OSError(28, "No space left on device")
        super().rename(source, target)
