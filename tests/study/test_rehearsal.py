"""Shares that cannot be reached are told before a reference is trained."""

from __future__ import annotations

import sys

import pytest

from lessen.errors import BudgetError
from lessen.log import Log
from lessen.study.run import run
from lessen.study.schema import Study
from study_tools import TEXT, write

FAR = "  - name: far\n    steps: [{emb-rowwise-quant: {share: 0.0001, min_rows: 10}}]\n"
RETRAINED = "  - name: retrained\n    steps: [{emb-qr: {share: 0.000001, min_rows: 10}}]\n"


class Notes(Log):
    def __init__(self):
        self.lines = []

    def progress(self, what, done, total=None, **_):
        self.lines.append(what)

    def note(self, text):
        self.lines.append(text)


class Trained(Exception):
    pass


@pytest.fixture
def untrained(monkeypatch):
    """A study that comes to training its reference ends there."""

    def train(_job):
        raise Trained

    monkeypatch.setattr(sys.modules["lessen.study.run"], "train_reference", train)
    monkeypatch.setattr(sys.modules["lessen.study.run"], "perform", lambda item: item[0](item[1]))


def study(tmp_path, text):
    return Study.load(write(tmp_path / "study.yaml", text))


@pytest.mark.usefixtures("untrained")
def test_an_unreachable_share_among_others_is_told_before_anything_is_trained(tmp_path):
    seen = Notes()
    with pytest.raises(Trained):
        run(study(tmp_path, TEXT + FAR), tmp_path / "out", log=seen)
    (told,) = (line for line in seen.lines if "will fail" in line)
    assert told.startswith("recipe 'far' will fail: emb-rowwise-quant")


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("recipe", [FAR, RETRAINED], ids=["post", "retrained"])
def test_a_study_of_unreachable_shares_trains_nothing(tmp_path, recipe):
    only = TEXT[: TEXT.index("recipes:")] + "recipes:\n" + recipe
    with pytest.raises(BudgetError, match="no recipe of this study can be run; recipe '(far|retrained)'"):
        run(study(tmp_path, only), tmp_path / "out")
