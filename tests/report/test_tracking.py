"""Studies in trackers: what is told of each recipe, and that the real MLflow and W&B take it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lessen import cli, report
from lessen.errors import ConfigError, EnvironmentFault, MissingExtraError
from lessen.frontier import Frontier
from lessen.report.tracking import runs_of, to_mlflow, tracker
from study_folder import RECIPES, write_study


@pytest.fixture
def folder(tmp_path):
    few = {name: RECIPES[name] for name in ("int8 rows", "hash 16x")}
    found = write_study(tmp_path / "study", examples=300, recipes=few)
    report.write(found)
    return found


def test_each_recipe_is_a_run_with_knobs_figures_verdict_and_files(folder):
    frontier = Frontier.load(folder)
    runs = list(runs_of(frontier, folder))
    assert [run.name for run in runs] == [point.label for point in frontier]
    for run, point in zip(runs, frontier, strict=True):
        assert run.params["1"] == point.steps[0]["method"]
        assert run.metrics["auc_difference"] == point.difference["auc"].value
        assert run.metrics["stored_bytes_share"] == point.share["stored_bytes"].mean
        assert run.tags["verdict"] == point.verdict
        assert run.tags["margin"] == f"{frontier.margin:g}"
        assert {path.name for path in run.files} >= {"frontier.csv", "frontier.html"}
    assert len({run.key for run in runs}) == 2
    assert [run.key for run in runs_of(Frontier.load(folder), folder)] == [run.key for run in runs]


def test_an_unknown_tracker_is_refused_before_anything_is_read(capsys):
    with pytest.raises(ConfigError, match="did you mean 'mlflow'"):
        tracker("mlfow")
    assert cli.execute(["report", "absent", "--to", "mlfow"]) == 2
    assert "did you mean 'mlflow'?" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed_is_named(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match=r"lessen\[mlflow\]"):
        to_mlflow(folder)
    assert cli.execute(["report", str(folder), "--to", "mlflow"]) == 3


def test_what_a_service_raises_is_one_line(folder, monkeypatch):
    class Client:
        def __init__(self):
            raise RuntimeError("no route to host\nTraceback")

    monkeypatch.setitem(sys.modules, "mlflow", type("mlflow", (), {"MlflowClient": Client}))
    with pytest.raises(EnvironmentFault, match="MLflow did not take the study: no route to host$"):
        to_mlflow(folder)


def test_mlflow_holds_a_study_once(folder, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the [mlflow] extra is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # without SQLAlchemy there is no other local one
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    first = to_mlflow(folder)
    assert to_mlflow(folder) == first
    client = mlflow.MlflowClient()
    kept = client.search_runs([client.get_experiment_by_name(Frontier.load(folder).studies[0].name).experiment_id])
    assert {run.info.run_id for run in kept} == set(first)
    best = next(run for run in kept if run.info.run_name == "int8 rows")
    assert best.data.params["1"] == "emb-rowwise-quant"
    told = next(point for point in Frontier.load(folder) if point.recipe == "int8 rows")
    assert best.data.tags["lessen.verdict"] == told.verdict
    assert best.data.metrics["stored_bytes_share"] == pytest.approx(0.331, abs=0.01)
    assert "frontier.html" in {entry.path for entry in client.list_artifacts(best.info.run_id)}


def test_wandb_takes_a_study_offline(folder, tmp_path):
    pytest.importorskip("wandb", reason="the [wandb] extra is not installed")
    call = "import sys; from lessen.report.tracking import to_wandb; print(*to_wandb(sys.argv[1]))"
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    done = subprocess.run(
        [sys.executable, "-c", call, str(folder)], capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr[-800:]
    keys = [run.key for run in runs_of(Frontier.load(folder), folder)]
    assert done.stdout.split()[-2:] == keys
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2
