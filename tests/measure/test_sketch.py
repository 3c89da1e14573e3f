"""What a recipe would leave, to the byte, before it is run."""

from __future__ import annotations

import pytest
import torch

from lessen.artifact import folder as artifact
from lessen.measure.sketch import bytes_of, sketch
from lessen.recipe import Recipe
from lessen.tasks.language.manual import ManualOptions, ManualTask
from lessen.testing.toys import TableTask

RECIPES = [
    [{"emb-rowwise-quant": {"bits": 4}}],
    [{"linear-int8": {"min_weights": 64}}],
    [{"emb-rowwise-quant": {"bits": 8}}, {"rtn": {"bits": 3, "min_weights": 64, "table_bits": None}}],
    [{"linear-low-rank": {"energy": 0.9}}],
    [{"emb-hash": {"ratio": 0.5}}],
    [{"emb-lsq": {}}, {"linear-int8": {"min_weights": 64}}],
    [{"emb-prune-rows": {"keep": 0.8}}],
    [{"gptq": {"bits": 4, "min_weights": 64, "calibration_batches": 2}}],
]


@pytest.fixture(scope="module")
def known():
    task = TableTask()
    torch.manual_seed(0)
    return task, task.build().eval()


@pytest.mark.parametrize("steps", RECIPES, ids=lambda steps: "+".join(next(iter(step)) for step in steps))
def test_forecast_bytes_are_those_of_the_files(known, steps, tmp_path):
    task, model = known
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = Recipe.parse({"steps": steps})
    found = sketch(recipe, model, task)
    assert found.model is not None, found.why
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    compact, _ = recipe.apply(model, task)
    artifact.save(tmp_path / "a", compact, model)
    written = sum((tmp_path / "a" / name).stat().st_size for name in ("model.safetensors", artifact.STRUCTURE))
    assert bytes_of(found.model, model, task, recipe) == written


def test_nothing_is_trained_and_no_data_is_read_for_a_form_that_needs_none(known):
    task, model = known

    def read(*_, **__):
        raise AssertionError("the form of these codes does not hang on data")

    recipe = Recipe.parse({"steps": [{"gptq": {"bits": 4, "min_weights": 64}}]})
    language = ManualTask(ManualOptions())
    host = language.build().eval()
    held = language.view()
    vars(held)["loss"] = read
    assert sketch(recipe, host, held).model is not None
    trained = task.view(loss=read)
    assert sketch(Recipe.parse({"steps": [{"emb-hash": {}}]}), model, trained).model is not None


def test_a_size_that_only_training_finds_is_said_and_not_guessed(known):
    task, model = known
    found = sketch(Recipe.parse({"steps": [{"emb-pep": {}}]}), model, task)
    assert found.model is None
    assert "finds the form" in found.why
    nothing = sketch(Recipe.parse({"steps": [{"tome": {}}]}), model, task)
    assert not nothing.matches
