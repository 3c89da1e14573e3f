"""Bring your own model: compress, measure, save, load and compare from Python, without our models or YAML."""

from __future__ import annotations

import html
import json

import pytest
import torch
import yaml

import lessen
from lessen.errors import ArtifactError, ConfigError, NonFiniteError, NothingMatchedError
from lessen.recipe import Recipe
from toy import ToyNet, ToyTask


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    task = ToyTask()
    return task, task.reference(seed=0)


def test_the_callers_model_is_never_changed_and_the_round_trip_is_exact(trained, tmp_path):
    task, model = trained
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    trade = lessen.compress(model, task, {"emb-rowwise-quant": {"bits": 8, "min_rows": 1}}, margin=0.05)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert kinds == [type(module) for module in model.modules()]
    size = trade.save(tmp_path / "small")
    assert size == trade.measurement.cost["stored_bytes"]
    again = lessen.load(tmp_path / "small", model=ToyNet())
    inputs = task.example_batch()[0]
    assert torch.equal(again(inputs), trade.model(inputs))
    assert lessen.verify(tmp_path / "small", model=ToyNet()).probe == "equal"
    described = yaml.safe_load((tmp_path / "small" / "recipe.yaml").read_text())
    assert "emb-rowwise-quant" in str(described)
    assert json.loads((tmp_path / "small" / "measurement.json").read_text())["cost"]["stored_bytes"] == size
    assert "emb-rowwise-quant" in (tmp_path / "small" / "card.md").read_text()


def test_a_delta_stores_only_what_differs_from_the_model_it_came_from(trained, tmp_path):
    task, model = trained
    trade = lessen.compress(model, task, {"emb-half": {}}, margin=0.05)
    size = trade.save(tmp_path / "delta", delta=True)
    assert size < trade.measurement.cost["stored_bytes"]
    found = lessen.verify(tmp_path / "delta", model=model)
    assert (found.probe, found.stored_bytes) == ("equal", size)
    assert found.serving_bytes > size
    with pytest.raises(ArtifactError, match="another base"):
        lessen.load(tmp_path / "delta", model=ToyNet())


def test_the_table_holds_every_cost_and_an_interval(trained):
    task, model = trained
    text = str(lessen.compress(model, task, "emb-half", margin=0.05))
    for label in (
        "stored bytes",
        "memory held",
        "parameters",
        "multiply-adds",
        "latency, median (ms)",
        "auc",
        "logloss",
    ):
        assert label in text
    assert "within margin" in text.splitlines()[-1]


def test_a_notebook_shows_the_table(trained):
    task, model = trained
    trade = lessen.compare(model, model, task, margin=0.01)
    assert trade._repr_html_() == f"<pre>{html.escape(str(trade))}</pre>"


def test_a_ruined_model_is_worse(trained):
    task, model = trained
    ruined = ToyNet()
    trade = lessen.compare(model, ruined, task, margin=0.01)
    assert trade.verdict == "worse"
    assert trade.differences["auc"].value < -0.05


def test_a_model_compared_with_itself_loses_nothing(trained):
    task, model = trained
    trade = lessen.compare(model, model, task, margin=0.01)
    assert trade.differences["auc"].value == 0
    assert trade.verdict == "within margin"


def test_an_untrained_reference_proves_nothing(trained):
    task, _ = trained
    trade = lessen.compare(ToyNet(), ToyNet(), task, margin=0.01)
    assert trade.verdict == "not enough data to say"
    assert "chance" in trade.judgement.reason


@pytest.mark.parametrize(
    ("steps", "error", "match"),
    [
        ("emb-rowwise-quant-typo", ConfigError, "did you mean"),
        ({"emb-rowwise-quant": {"bit": 4}}, ConfigError, "no key 'bit'; did you mean 'bits'"),
        ({"emb-rowwise-quant": {"bits": 99}}, ConfigError, "emb-rowwise-quant.bits = 99 is not accepted"),
        ({"emb-rowwise-quant": {"min_rows": 10**6}}, NothingMatchedError, "found nothing to act on"),
        ([{"a": {}, "b": {}}], ConfigError, "expected one method"),
    ],
)
def test_bad_steps_are_one_line(trained, steps, error, match):
    task, model = trained
    with pytest.raises(error, match=match) as caught:
        lessen.compress(model, task, steps, margin=0.01)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("margin", [0, -1, float("nan"), float("inf"), None, True])
def test_a_margin_must_be_positive(trained, margin):
    task, model = trained
    with pytest.raises(ConfigError, match="margin"):
        lessen.compare(model, model, task, margin=margin)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_weights_are_named_before_anything_runs(trained, value):
    task, _ = trained
    broken = ToyNet()
    with torch.no_grad():
        broken.left.weight[3, 1] = value
    with pytest.raises(NonFiniteError, match=r"left\.weight \(1 of 512 values\)"):
        lessen.compress(broken, task, "emb-half", margin=0.01)


def test_a_recipe_hash_changes_with_every_knob():
    def of(knobs):
        return Recipe.parse({"steps": [{"emb-rowwise-quant": knobs}]}).hash

    assert of({"bits": 8}) == of({"bits": 8})
    assert len({of({"bits": 8}), of({"bits": 4}), of({"bits": 8, "min_rows": 7}), Recipe([]).hash}) == 4


def test_a_recipe_survives_its_yaml_form():
    from lessen import files

    recipe = Recipe.parse({"name": "both", "steps": ["emb-half", {"linear-int8": {}}]})
    again = Recipe.parse(files.parse_yaml(files.dump_yaml(recipe.describe()), "recipe"))
    assert again == recipe
    assert again.hash == recipe.hash


def test_a_timing_shows_the_ratio_that_its_interval_belongs_to(trained):
    """It once showed the ratio of two medians beside the interval of paired ratios that did not hold it."""
    task, model = trained
    trade = lessen.compare(model, model, task, margin=0.05)
    cost = trade.measurement.cost
    cost.update(latency_ms_p50=2.0, latency_ratio=1.012, latency_ratio_ci=(0.991, 1.031))
    trade.measurement.reference["cost"]["latency_ms_p50"] = 2.1
    (row,) = [row for row in str(trade).splitlines() if row.startswith("latency, median (ms)")]
    assert row.split()[3:] == ["2.100", "2.000", "1.012x", "[0.991,", "1.031]"]
