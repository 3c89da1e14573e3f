"""Outcomes are checked when made, pair only with the same units, and metrics find themselves by name."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lessen.errors import ConfigError, DataError, NonFiniteError, TaskError
from lessen.frontier import Frontier
from lessen.measure.record import measure_quality
from lessen.methods.embeddings.half import HalfTables
from lessen.metrics import (
    AUC,
    GAUC,
    RELATIVE_INFORMATION_GAIN,
    MeanMetric,
    Metric,
    Outcomes,
    check_reads,
    find_metric,
)
from lessen.metrics.storage import read_outcomes, write_outcomes
from lessen.recipe import Recipe
from lessen.study import MeasureOptions, Study, run
from lessen.train.settings import FitSettings
from toy import ToyTask

ROWS = {"score": np.array([0.5, -1.0, 2.0]), "target": np.array([1, 0, 1])}


@pytest.mark.parametrize(
    ("columns", "group", "error", "match"),
    [
        ({}, None, TaskError, "no column"),
        ({"score": np.zeros(0)}, None, TaskError, "no unit"),
        ({"score": np.zeros(3), "target": np.zeros(2)}, None, TaskError, "score 3, target 2"),
        ({"score": np.zeros(3)}, np.zeros(2, int), TaskError, "score 3, group 2"),
        ({"score": np.float32(1.0)}, None, TaskError, "one number"),
        ({"score": np.array(["a"])}, None, TaskError, "numbers or truth values"),
        ({"score": np.array([1.0, np.nan, np.inf])}, None, NonFiniteError, "2 of 3 values of the column 'score'"),
        ({"score": np.zeros(2)}, np.array([0.5, 1.0]), TaskError, "integer or string"),
    ],
)
def test_bad_columns_are_named_in_one_line(columns, group, error, match):
    with pytest.raises(error, match=match) as caught:
        Outcomes(columns, group)
    assert "\n" not in str(caught.value)


def test_groups_are_numbered_whatever_they_are_called():
    named, numbered = (Outcomes(ROWS, group) for group in (np.array(["b", "a", "b"]), np.array([7, 3, 7])))
    assert named.same_units(numbered)
    assert named["group"].tolist() == [1, 0, 1]


def test_only_what_the_data_give_must_agree():
    first = Outcomes(ROWS)
    assert first.same_units(Outcomes({**ROWS, "score": np.zeros(3)}))
    assert not first.same_units(Outcomes({**ROWS, "target": np.array([0, 1, 1])}))
    assert not first.same_units(Outcomes(ROWS, np.array([0, 1, 1])))
    own = frozenset({"question"})
    asked = [Outcomes({"right": np.ones(2), "question": np.array(ids)}, given=own) for ids in ([1, 2], [2, 1])]
    with pytest.raises(TaskError, match="column 'question' differs"):
        asked[0].check_same_units(asked[1])


def test_files_keep_units_once_and_refuse_other_ones(tmp_path):
    first = Outcomes({**ROWS, "weight": np.array([1.0, 2.0, 0.0])}, np.array([2, 2, 5]))
    write_outcomes(tmp_path / "a-0.safetensors", first)
    again = read_outcomes(tmp_path / "a-0.safetensors")
    assert again.same_units(first)
    assert again.made.keys() == {"score"}
    assert read_outcomes(tmp_path / "absent-0.safetensors") is None
    with pytest.raises(TaskError, match="different units"):
        write_outcomes(tmp_path / "b-0.safetensors", Outcomes({**first.columns, "target": np.zeros(3)}, first.group))
    (tmp_path / "a-0.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match="damaged"):
        read_outcomes(tmp_path / "a-0.safetensors")


def test_columns_without_units_of_their_own_survive(tmp_path):
    write_outcomes(tmp_path / "a-0.safetensors", Outcomes({"right": np.array([True, False])}))
    assert read_outcomes(tmp_path / "a-0.safetensors")["right"].tolist() == [True, False]


class Hits(MeanMetric):
    """A metric as users write them."""

    name, title, reads = "hits-of-tests", "hits", ("right",)

    def each(self, outcomes):
        return outcomes["right"].astype(np.float64)


def test_a_metric_is_found_by_its_name_and_no_other_may_take_it():
    assert isinstance(find_metric("hits-of-tests"), Hits)
    assert find_metric("auc").title == "AUC"
    assert find_metric("no-such-metric") is None
    with pytest.raises(ConfigError, match="'auc' exists already"):
        type("Mine", (Hits,), {"name": "auc"})
    again = type("Hits", (MeanMetric,), {"name": Hits.name, "each": Hits.each, "__module__": Hits.__module__})
    assert again.name == "hits-of-tests"  # the same class, imported again


def test_a_metric_written_for_scores_and_targets_still_works():
    class Above(MeanMetric):
        name = "above-of-tests"

        def each(self, scores, targets):
            return ((scores > 0) == targets).astype(np.float64)

    class Twice(Metric):
        name = "twice-of-tests"

        def weighted(self, scores, targets, weights):
            return 2.0 * (weights @ (scores * targets)) / weights.sum(axis=1)

    assert Above()(Outcomes(ROWS)) == 1.0
    assert Twice()(ROWS["score"], ROWS["target"]) == pytest.approx(2 * 2.5 / 3)
    with pytest.raises(ConfigError, match=r"write weighted\(outcomes, weights\)"):
        type("Called", (Metric,), {"__call__": lambda self, scores, targets: 0.0, "weighted": Twice.weighted})


def test_missing_columns_are_refused_before_anything_is_trained(tmp_path):
    class Unable(ToyTask):
        metrics = {"gauc": GAUC}

        def build(self):
            raise AssertionError("nothing may be built")

    with pytest.raises(TaskError, match="metric 'gauc' reads 'group', which task 'toy' does not give"):
        Study("s", Unable(), [Recipe([HalfTables()])])
    check_reads({"gauc": GAUC}, ("score", "target", "group"), "it")
    with pytest.raises(TaskError, match="'right'"):
        Hits()(Outcomes(ROWS))


def test_a_task_may_give_columns_of_its_own():
    class Asked(ToyTask):
        metrics = {"hits": Hits()}
        columns = ("right",)

        def outcomes(self, model, split="test"):
            found = super().outcomes(model, split)
            return Outcomes({"right": (found["score"] > 0) == (found["target"] > 0)})

    task = Asked()
    quality = measure_quality(task, task.build())
    assert quality.values["hits"] == pytest.approx(quality.outcomes["right"].mean())
    assert task.score(task.build(), "validation") > 0


class Gain(ToyTask):
    """Judged by a metric that lessen has but that no list of four ever named."""

    metrics = {"gain": RELATIVE_INFORMATION_GAIN, "auc": AUC}
    settings = FitSettings(epochs=5, learning_rate=0.02)


def test_the_report_gives_the_verdicts_of_the_run(tmp_path):
    task, options = Gain(examples=4000), MeasureOptions(rounds=8)
    study = Study("s", task, [Recipe([HalfTables()], name="half")], seeds=(0, 1), margin=0.05, measure=options)
    result = run(study, tmp_path / "out")
    ran, read = Frontier.load(result.out, metrics=task.metrics), Frontier.load(result.out)
    assert ran["half"].difference["gain"] == read["half"].difference["gain"]
    assert (ran["half"].judgement, ran["half"].verdict) == (read["half"].judgement, "within margin")
    assert result.records[0]["metrics"]["gain"]["metric"] == "rig"


class Shuffled(ToyTask):
    """Gives its test rows in another order at every pass."""

    def batches(self, split, seed=0):
        for ids, label in super().batches(split, seed):
            order = np.random.permutation(len(ids)) if split == "test" else slice(None)
            yield ids[order], label[order]


def test_rows_that_change_their_order_are_an_error_not_a_loss(tmp_path):
    import lessen

    task = Shuffled(examples=2000)
    model = task.build()
    with pytest.raises(TaskError, match="column 'target' differs"):
        lessen.compare(model, model, task, margin=0.01)
    study = Study("s", task, [Recipe([HalfTables()], name="half")], seeds=(0,), measure=MeasureOptions(rounds=8))
    with pytest.raises(TaskError, match="different units"):
        run(study, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "measurements.jsonl").read_text())
    assert "different units" in record["error"]


OWN = """
from lessen.metrics import MeanMetric

class Margin(MeanMetric):
    name, title, higher_is_better = "margin-of-tests", "hinge", False

    def each(self, outcomes):
        sign = 2.0 * outcomes["target"] - 1.0
        return (1.0 - sign * outcomes["score"]).clip(min=0.0).astype(float)

    def chance(self, outcomes):
        return 1.0
"""


def test_the_report_needs_no_class_of_a_metric(tmp_path):
    """A metric of the user's own, gone at report time: the same verdicts, from the files alone."""
    space: dict[str, object] = {"__name__": "gone"}
    exec(OWN, space)

    class Mine(ToyTask):
        metrics = {"hinge": space["Margin"]()}
        settings = FitSettings(epochs=5, learning_rate=0.02)

    task, options = Mine(examples=4000), MeasureOptions(rounds=8)
    study = Study("s", task, [Recipe([HalfTables()], name="half")], seeds=(0, 1), margin=0.05, measure=options)
    result = run(study, tmp_path / "out")
    ran = Frontier.load(result.out, metrics=task.metrics)
    Metric._known.pop("margin-of-tests")
    read = Frontier.load(result.out)
    assert (ran["half"].difference, ran["half"].judgement) == (read["half"].difference, read["half"].judgement)
    assert read["half"].verdict == "within margin"
    assert read["half"].difference["hinge"].source == "examples and seeds"
    alone = Frontier.from_records(result.records, margin=0.05)["half"]  # no outcomes: the records tell what is needed
    assert alone.verdict == "within margin"
    assert alone.difference["hinge"].high >= read["half"].difference["hinge"].high - 1e-9
