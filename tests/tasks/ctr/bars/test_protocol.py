"""The protocol from files to a result, on small files in the form of each data set."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bars_files import ROWS, write
from lessen.data.folder import Dataset
from lessen.errors import DataError, OutputError
from lessen.log import Log
from lessen.tasks.ctr.bars import RunSettings, load_recipe, read_result, run_bars
from lessen.tasks.ctr.bars.datasets import DATASETS, SPLITS, checked_files, data_of
from lessen.tasks.ctr.bars.protocol import BarsClicks

QUICK = RunSettings(epochs=1, own_split=True)


@pytest.mark.parametrize(
    ("dataset", "model"),
    [
        ("Frappe_x1", "finalmlp"),
        ("MovielensLatest_x1", "fm"),
        ("Criteo_x1", "finalmlp"),
        ("Criteo_x4", "lr"),
        pytest.param("Criteo_x4_002", "fgcnn", marks=pytest.mark.slow),
        ("Avazu_x1", "dlrm"),
        ("Avazu_x4", "autoint+"),
    ],
)
def test_files_become_a_result(dataset: str, model: str, tmp_path: Path) -> None:
    recipe = load_recipe(dataset, model)
    data = data_of(recipe.dataset)
    path = run_bars(recipe, tmp_path / "out", write(data.name, tmp_path / "files"), QUICK)
    result = read_result(path)
    assert path.name == f"{recipe.dataset}_{model}_{recipe.training.seed}.json"
    assert result["rows"] == ROWS
    assert result["test"]["examples"] == ROWS["test"]
    low, high = result["test"]["auc_interval"]
    assert low < result["test"]["auc"] < high
    assert result["settings"]["dim"] == recipe.dim
    assert not result["published_files"]
    assert not list((tmp_path / "out").glob("*.checkpoint"))
    assert len(Dataset(tmp_path / "out" / result["settings"]["data"]).layout.fields) + len(data.numeric) == (
        len(data.categorical) + len(data.numeric) + len(data.bucketed)
    )


def test_a_model_learns_and_a_second_run_keeps_the_result(tmp_path: Path) -> None:
    recipe = load_recipe("frappe_x1", "DeepFM")
    files = write("Frappe_x1", tmp_path / "files")
    path = run_bars(recipe, tmp_path / "out", files, RunSettings(seed=3, own_split=True))
    result, written = read_result(path), path.read_bytes()
    assert result["test"]["auc"] > 0.8
    assert result["epochs"] == result["best_epoch"] + recipe.patience  # stopped early, long before the last epoch
    assert [h["learning_rate"] for h in result["history"]][:2] == [1e-3, 1e-3]
    assert run_bars(recipe, tmp_path / "out", files, RunSettings(seed=3)) == path
    assert path.read_bytes() == written


def test_criteo_buckets_and_avazu_times_are_as_published(tmp_path: Path) -> None:
    recipe = load_recipe("Criteo_x4", "lr")
    run_bars(recipe, tmp_path / "c", write("Criteo_x4", tmp_path / "criteo"), QUICK)
    encoder = Dataset(tmp_path / "c" / "data_Criteo_x4_10").encoder
    raw = pl.read_csv(tmp_path / "criteo" / "train.csv", infer_schema=False)["I1"].fill_null("0")
    numbers = np.array([float(value or 0) for value in raw])
    expected = [int(np.floor(np.log(v) ** 2)) if v > 2 else int(v) for v in numbers]
    common = {str(v) for v in set(expected) if expected.count(v) >= 10}
    assert set(encoder.vocabularies["I1"].values) == common  # type: ignore[union-attr]
    run_bars(load_recipe("Avazu_x4", "lr"), tmp_path / "a", write("Avazu_x4", tmp_path / "avazu"), QUICK)
    times = pl.read_parquet(tmp_path / "a" / "data_Avazu_x4_2_times" / "train.parquet")
    hours = pl.read_csv(tmp_path / "avazu" / "train.csv", infer_schema=False)["hour"]
    for raw_hour, hour, weekday, weekend in zip(hours, times["hour"], times["weekday"], times["weekend"], strict=True):
        day = int(date(2000 + int(raw_hour[:2]), int(raw_hour[2:4]), int(raw_hour[4:6])).strftime("%w"))
        assert (hour, weekday, weekend) == (int(raw_hour[6:]), day, int(day in (0, 6)))


def test_x4_stops_early_on_auc_minus_logloss(tmp_path: Path) -> None:
    recipe = load_recipe("Criteo_x4", "lr")
    run_bars(recipe, tmp_path / "out", write("Criteo_x4", tmp_path / "files"), QUICK)
    task = BarsClicks(recipe, tmp_path / "out" / "data_Criteo_x4_10", QUICK)
    model = task.build()
    scores, targets = task.predictions(model, "validation")
    loss = np.logaddexp(0, scores.astype(np.float64)) - targets * scores
    pairs = scores[targets == 1][:, None] - scores[targets == 0][None]
    assert task.score(model) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)) - loss.mean(), abs=1e-9)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    data = DATASETS["Frappe_x1"]
    folder = write("Frappe_x1", tmp_path / "files")
    with pytest.raises(DataError, match=r"train.csv is not the published file: its MD5 is .*add --own-split"):
        checked_files(data, folder)
    assert set(checked_files(data, folder, published=False)) == set(SPLITS)
    text = (folder / "valid.csv").read_text()
    for broken, message in [
        (text.replace("weather", "wether", 1), r"valid.csv lacks the column 'weather' of Frappe_x1"),
        (text.replace("city\n", "city,extra\n", 1), r"valid.csv has the column 'extra', which Frappe_x1 has not"),
        ("", "valid.csv is empty"),
    ]:
        (folder / "valid.csv").write_text(broken)
        with pytest.raises(DataError, match=message):
            checked_files(data, folder, published=False)
    (folder / "valid.csv").unlink()
    with pytest.raises(DataError, match=r"valid.csv does not exist; .* run lessen data get Frappe_x1"):
        checked_files(data, folder, published=False)


def test_a_bad_hour_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    folder = write("Avazu_x4", tmp_path / "files")
    lines = (folder / "valid.csv").read_text().splitlines()
    hour = lines[0].split(",").index("hour")
    cells = lines[7].split(",")
    cells[hour] = "14109999"
    (folder / "valid.csv").write_text("\n".join([*lines[:7], ",".join(cells), *lines[8:]]) + "\n")
    with pytest.raises(DataError, match=r"valid.csv, line 8, column 'hour': not of the form YYMMDDHH"):
        run_bars(load_recipe("Avazu_x4", "lr"), tmp_path / "out", folder, QUICK)
    assert not list((tmp_path / "out").glob("data*"))


class _Stop(Log):
    """Stops the training after its second epoch, as Ctrl-C would."""

    def progress(self, what: str, done: int, total: int) -> None:
        if what == "training" and done == 2:
            raise KeyboardInterrupt


def test_a_stopped_run_continues_to_the_same_result(tmp_path: Path) -> None:
    recipe, files = load_recipe("Frappe_x1", "dnn"), write("Frappe_x1", tmp_path / "files")
    settings = RunSettings(epochs=4, own_split=True)
    with pytest.raises(KeyboardInterrupt):
        run_bars(recipe, tmp_path / "out", files, settings, _Stop())
    assert (tmp_path / "out" / "Frappe_x1_dnn_2021.checkpoint").exists()
    stopped = read_result(run_bars(recipe, tmp_path / "out", files, settings))
    whole = read_result(run_bars(recipe, tmp_path / "whole", files, settings))
    for key in ("test", "validation", "epochs", "best_epoch"):
        assert stopped[key] == whole[key]


def test_times_of_other_files_are_not_used_again(tmp_path: Path) -> None:
    recipe = load_recipe("Avazu_x4", "lr")
    run_bars(recipe, tmp_path / "out", write("Avazu_x4", tmp_path / "files"), QUICK)
    write("Avazu_x4", tmp_path / "files", seed=1)
    settings = RunSettings(seed=1, epochs=1, own_split=True)
    with pytest.raises(OutputError, match="was made from other files; remove it or choose another --out"):
        run_bars(recipe, tmp_path / "out", tmp_path / "files", settings)


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"version": 1, "dataset": "Frappe_x1"}))
    with pytest.raises(DataError, match="is no result of lessen bars run"):
        read_result(path)
