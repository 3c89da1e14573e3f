"""`lessen plan`: test units from flips, from a study, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lessen import cli
from lessen.frontier.verdict import UNKNOWN
from study_folder import RECIPES, write_study


def planned(capsys, *arguments: str) -> list[dict]:
    assert cli.execute(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["plan"]


def test_flips_give_units(capsys):
    within, told = planned(capsys, "--margin", "0.01", "--flips", "0.06")
    assert (within["question"], told["question"]) == ("within margin", "told from no loss")
    assert 4600 < told["units"] < 4800
    assert planned(capsys, "--margin", "0.01", "--flips", "0.06", "--loss", "0.03")[0]["question"] == "worse"
    gained = planned(capsys, "--margin", "0.01", "--flips", "0.06", "--loss", "-0.02")
    assert [row["question"] for row in gained] == ["within margin", "better", "told from no loss"]
    few = planned(capsys, "--margin", "0.01", "--flips", "0.06", "--seeds", "2", "--spread", "0.008")[0]
    assert few["seeds"] > 2  # two seeds never say, however many units


def test_a_study_that_could_not_say_tells_what_the_next_one_needs(tmp_path, capsys):
    write_study(tmp_path / "out", seeds=2)
    rows = planned(capsys, str(tmp_path / "out"))
    assert {row["recipe"] for row in rows} == set(RECIPES)
    unsure = [row for row in rows if row["verdict"] == UNKNOWN and row["units"]]
    assert unsure
    assert all(row["units"] > row["units now"] or row["seeds"] > row["seeds now"] for row in unsure)
    assert all(row["units now"] > 0 and row["seeds now"] == 2 for row in rows)
    assert all(row["units"] is None or row["units"] > 0 for row in rows)
    tighter = planned(capsys, str(tmp_path / "out"), "--margin", "0.001", "--seeds", "5")
    assert {row["seeds"] for row in tighter if row["seeds"]} >= {5}
    assert cli.execute(["plan", str(tmp_path / "out")]) == 0
    assert "units now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a folder"),
        (["--flips", "0.1"], "give --margin"),
        (["out", "--flips", "0.1"], "give a folder"),
        (["--flips", "0.1", "--margin", "nan"], "--margin"),
        (["--flips", "0.1", "--margin", "0.01", "--spread", "0.1"], "--seeds 2"),
        (["--flips", "0.1", "--margin", "0.01", "--spread", "nan", "--seeds", "2"], "0 or more"),
        (["--flips", "0.1", "--margin", "0.01", "--spread", "inf", "--seeds", "3"], "0 or more"),
        (["--flips", "0.1", "--margin", "0.01", "--spread", "1e200", "--seeds", "3"], "0 or more"),
        (["--flips", "0.1", "--margin", "0.01", "--loss", "nan"], "a loss of nan"),
        (["--flips", "2", "--margin", "0.01"], "flips"),
        (["nowhere"], "nowhere"),
    ],
)
def test_refused_in_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.execute(["plan", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_study_without_outcomes_is_said(capsys):
    root = Path(__file__).parents[2] / "benchmarks" / "results" / "demo"
    assert cli.execute(["plan", str(root)]) == 2
    assert "kept no outcomes" in capsys.readouterr().err
