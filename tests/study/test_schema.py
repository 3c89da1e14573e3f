"""A study file is checked whole, and every mistake is one line that names the key and what is allowed."""

from __future__ import annotations

import pytest

from lessen.errors import ConfigError
from lessen.files import dump_yaml
from lessen.log import Log
from lessen.recipe import Recipe
from lessen.study import Study
from lessen.study.folder import difference
from study_tools import TEXT, write
from toy import ToyTask


def load(tmp_path, text):
    return Study.load(write(tmp_path / "study.yaml", text))


def test_a_good_study_is_resolved_with_every_default(tmp_path):
    study = load(tmp_path, TEXT)
    resolved = study.describe()
    assert resolved["margin"] == 0.01
    assert resolved["task"]["fields"] == 6
    assert resolved["measure"]["threads"] == 1
    assert resolved["recipes"][0]["steps"][0]["emb-rowwise-quant"]["ranges"] == "least"
    again = Study.parse(resolved)
    assert again.describe() == resolved
    assert [(recipe.name, seed) for recipe, seed in study.runs()] == [
        ("int8", 0),
        ("int8", 1),
        ("hash", 0),
        ("hash", 1),
    ]


def test_an_older_file_loads_and_says_what_it_leaves_aside(tmp_path):
    class Notes(Log):
        heard: list[str] = []

        def note(self, text: str) -> None:
            self.heard.append(text)

    new = load(tmp_path, TEXT).describe()
    older = {**new, "measure": {**new["measure"], "resamples": 1000}}
    (tmp_path / "older.yaml").write_text(dump_yaml(older))
    notes = Notes()
    assert Study.load(tmp_path / "older.yaml", notes).describe() == new
    assert len(notes.heard) == 1
    assert "older.yaml: measure.resamples is left aside" in notes.heard[0]
    assert difference(older, new) == ""  # a folder of the older version is gone on with


BAD = {
    "unknown key": (TEXT.replace("margin:", "margn:"), "no key 'margn'; did you mean 'margin'"),
    "unknown measure key": (TEXT.replace("rounds", "round"), "'measure.round'; did you mean 'measure.rounds'"),
    "missing task": (TEXT.replace("task:", "# task:"), "needs the key 'task'"),
    "unknown task": (TEXT.replace("ctr-synthetic", "ctr-sinthetic"), "did you mean 'ctr-synthetic'"),
    "unknown task option": (TEXT.replace("rows_per_field", "rows_a_field"), "rows_per_field"),
    "unknown method": (TEXT.replace("emb-hash", "emb-hsh"), "recipe 2: step 1: no method is called 'emb-hsh'"),
    "unknown knob": (TEXT.replace("bits", "bit"), "did you mean 'bits'"),
    "knob out of range": (TEXT.replace("bits: 8", "bits: 3"), "bits = 3 is not accepted"),
    "range": (TEXT.replace("rounds: 8", "rounds: 0"), "measure.rounds = 0 is not accepted"),
    "wrong type": (TEXT.replace("[0, 1]", "3"), "seeds = 3 is not accepted"),
    "negative seed": (TEXT.replace("[0, 1]", "[-1]"), "seeds.0 = -1 is not accepted"),
    "same seed": (TEXT.replace("[0, 1]", "[1, 1]"), "list each seed once"),
    "no recipes": (TEXT.partition("  - name")[0] + "  []\n", "recipes"),
    "same recipe": (TEXT.replace("hash\n", "int8\n"), "two recipes are called 'int8'"),
    "same file name": (TEXT.replace("hash\n", "INT8\n"), "shares its file name"),
    "reserved name": (TEXT.replace("hash\n", "reference\n"), "uncompressed model's"),
    "unknown metric": (TEXT.replace("{auc", "{auk"), "did you mean 'auc'"),
    "secondary metric": (TEXT.replace("{auc", "{logloss"), "verdicts use 'auc'"),
    "margin of zero": (TEXT.replace("0.01", "0"), "above 0"),
    "margin without end": (TEXT.replace("0.01", ".inf"), "margin = inf is not accepted"),
    "margin that is none": (TEXT.replace("0.01", ".nan"), "margin = nan is not accepted"),
    "gate of nothing": (TEXT.replace("seeds", "budget: stored_bytes<=-0.1x\nseeds"), "cannot be held"),
    "bad gate": (TEXT.replace("seeds", "budget: small please\nseeds"), "gate 'small please' is not understood"),
    "gate on a metric in bytes": (TEXT.replace("seeds", "budget: auc>=-3kB\nseeds"), "auc>=-0.001, not one in 'kb'"),
    "study name": (TEXT.replace("study: tiny", "study: ../tiny"), "study"),
    "not a mapping": ("- 1\n", "expected a mapping"),
    "not yaml": ("study: [", "line"),
    "duplicate key": (TEXT + "study: two\n", "duplicate key 'study'"),
    "alias": ("a: &x 1\nb: *x\n", "aliases"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(tmp_path, case):
    text, expected = BAD[case]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert expected in str(caught.value)
    assert "study.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="absent.yaml does not exist"):
        Study.load(tmp_path / "absent.yaml")


def test_a_study_of_ones_own_task_needs_no_yaml():
    study = Study("mine", ToyTask(), [Recipe([], name="as it is")], seeds=(0,))
    assert study.describe()["task"] == {"name": "toy"}
    with pytest.raises(ConfigError, match="at least one recipe"):
        Study("mine", ToyTask(), [])


def test_what_may_be_added_to_a_study_and_what_may_not(tmp_path):
    old = load(tmp_path, TEXT).describe()
    assert difference(old, old) == ""
    assert difference(old, {**old, "margin": 0.5, "budget": ["auc>=-1"], "seeds": [1, 0, 2]}) == ""
    assert difference(old, {**old, "recipes": [*old["recipes"], {"name": "more", "steps": []}]}) == ""
    assert "the seed 1" in difference(old, {**old, "seeds": [0]})
    assert "'hash', which is gone" in difference(old, {**old, "recipes": old["recipes"][:1]})
    changed = [{"name": "int8", "steps": []}, old["recipes"][1]]
    assert "'int8' changed" in difference(old, {**old, "recipes": changed})
    assert "task was" in difference(old, {**old, "task": {"name": "other"}})


def test_a_device_that_is_not_there_is_refused_before_any_work(tmp_path):
    for name in ("cuda:7", "nowhere", "meta"):
        with pytest.raises(ConfigError, match=f"device '{name}'") as caught:
            load(tmp_path, TEXT.replace("seeds:", f"device: {name}\nseeds:"))
        assert "\n" not in str(caught.value)
    assert "device" not in load(tmp_path, TEXT).describe()
    assert load(tmp_path, TEXT.replace("seeds:", "device: cpu\nseeds:")).device == "cpu"
