"""`lessen judge`: the card of an artifact of a study, its link on the frontier page, and what is refused."""

from __future__ import annotations

import json

import pytest

from lessen import cli
from lessen.report import write
from lessen.study import run
from lessen.study.schema import Study

STUDY = {
    "study": "small",
    "task": {"name": "ctr-synthetic", "rows": 3000, "rows_per_field": 40, "fields": 3},
    "seeds": [0],
    "measure": {"rounds": 8, "batches": 1, "peak_memory": False, "baselines": False},
    "recipes": [{"name": "int2", "steps": [{"emb-rowwise-quant": {"bits": 2, "min_rows": 1}}]}],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("judged") / "out"
    run(Study.parse(STUDY), out)
    write(out)
    return out


def test_the_card_of_a_study_is_linked_from_its_frontier(study, capsys):
    assert "report card" not in (study / "frontier.html").read_text()
    assert cli.execute(["judge", str(study / "artifacts" / "int2-0"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [section["name"] for section in found["sections"]] == ["metrics", "flips", "slices", "rare", "calibration"]
    assert found["page"] == str(study.resolve() / "cards" / "int2-0" / "card.html")
    assert 'href="cards/int2-0/card.html"' in (study / "frontier.html").read_text()
    assert "../../frontier.html" in (study / "cards" / "int2-0" / "card.html").read_text()
    again = write(study)  # the report alone keeps the link
    assert len(again)
    assert 'href="cards/int2-0/card.html"' in (study / "frontier.html").read_text()


def test_named_suites_another_folder_and_strict(study, tmp_path, capsys):
    arguments = ["judge", str(study / "artifacts" / "int2-0"), "--out", str(tmp_path / "card")]
    assert cli.execute([*arguments, "--suite", "flips:most=0.0001", "--suite", "slices:by=[field0],least=20"]) == 0
    said = capsys.readouterr().out
    assert "How many answers changed" in said
    assert cli.execute([*arguments, "--suite", "flips:most=0.0001", "--strict"]) == 1
    assert (tmp_path / "card" / "card.md").is_file()


def test_the_same_model_has_a_silent_card(study, tmp_path, capsys):
    reference = str(study / "reference" / "0")
    assert cli.execute(["judge", reference, "--against", reference, "--out", str(tmp_path / "card"), "--strict"]) == 0
    assert "Nothing caught" in capsys.readouterr().out


def test_the_list_of_suites(capsys):
    assert cli.execute(["judge", "--list", "--json"]) == 0
    found = {each["suite"]: each for each in json.loads(capsys.readouterr().out)["suites"]}
    assert found["flips"]["always"] == 2
    assert cli.execute(["judge", "--list"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give an artifact"),
        (["nowhere"], "no model at 'nowhere'"),
        (["ARTIFACT", "--suite", "flipz"], "did you mean 'flips'"),
        (["ARTIFACT", "--suite", "slices:only=field0=999"], "has no example in the test split"),
        (["ARTIFACT", "--suite", "metrics:only=[accuracy]"], "is no metric of task 'ctr-synthetic'"),
        (["ARTIFACT", "--suite", "corrupted"], "one float tensor"),
        (["ARTIFACT", "--suite", "flips:least=3"], "least"),
    ],
)
def test_refused_in_one_line_and_nothing_is_written(study, tmp_path, arguments, words, capsys):
    full = [str(study / "artifacts" / "int2-0") if each == "ARTIFACT" else each for each in arguments]
    assert cli.execute(["judge", *full, *(["--out", str(tmp_path / "card")] if full else [])]) == 2
    said = [each for each in capsys.readouterr().err.splitlines() if each.startswith("lessen:")]
    assert len(said) == 1
    assert words in said[0]
    assert not (tmp_path / "card").exists()
