"""Optuna's samplers propose, lessen measures; without the package the extra is named."""

from __future__ import annotations

import sys

import pytest

from lessen.errors import ConfigError, MissingExtraError
from lessen.search import Measured, Space, search
from lessen.search.optuna_samplers import OptunaSamplers
from lessen.study import MeasureOptions, Study
from toy import ToyTask

SPACE = Space.parse([["none", {"rtn": {"bits": {"any": [8, 4]}}}], ["none", "linear-int8", "linear-half"]])


def value(genome):
    return Measured(1.0 / (1 + genome[0]), 0.01 * genome[0] + 0.02 * genome[1])


def finished(proposing):
    return [tuple(trial.user_attrs["genome"]) for trial in proposing.study.trials
            if "genome" in trial.user_attrs and trial.state.is_finished()]  # fmt: skip


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_sampler_never_asks_twice(sampler):
    pytest.importorskip("optuna")
    proposing = OptunaSamplers(SPACE, sampler, 0, None, "toy")
    measured = {(0, 0): Measured(1.0, 0.0)}
    for _ in range(4):
        fresh = proposing(SPACE, measured, 2)
        assert not set(fresh) & set(measured)
        measured |= {genome: Measured(None, None) if genome == (1, 2) else value(genome) for genome in fresh}
    assert len(measured) > SPACE.size // 2
    assert len(set(finished(proposing))) == len(finished(proposing))


def test_another_process_is_told_what_the_folder_holds_and_no_trial_twice(tmp_path):
    pytest.importorskip("optuna")
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    measured = {(0, 1): value((0, 1)), (1, 2): Measured(None, None)}
    for _ in range(2):
        proposing = OptunaSamplers(SPACE, "random", 1, url, "toy")
        proposing(SPACE, measured, 1)
        assert sorted(finished(proposing)) == sorted(measured)


def test_what_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
    quick = MeasureOptions(rounds=8, peak_memory=False, baselines=False)
    asked = Study("toy", ToyTask(examples=400), [SPACE.recipe((1, 0))], (0,), measure=quick)
    with pytest.raises(ConfigError, match="add --sampler"):
        search(asked, SPACE, "auc>=-0.1", tmp_path / "out", storage="sqlite:///x.db")
    if "optuna" in sys.modules or pytest.importorskip("optuna"):
        with pytest.raises(ConfigError, match="cannot be opened"):
            search(asked, SPACE, "auc>=-0.1", tmp_path / "out", sampler="tpe", storage="nonsense://x")
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"lessen\[search\]"):
        OptunaSamplers(SPACE, "tpe", 0, None, "toy")
