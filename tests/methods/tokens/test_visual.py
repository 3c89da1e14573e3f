"""FastV, FEATHER, the determinantal choice, their controls and DeCo as methods, on an untrained LLaVA of the grid task."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from lessen import artifact
from lessen.errors import BudgetError, InputError, NothingMatchedError
from lessen.measure.record import count_macs
from lessen.methods.tokens.deco import DeCo
from lessen.methods.tokens.determinantal_tokens import DeterminantalTokens
from lessen.methods.tokens.fastv import FastV
from lessen.methods.tokens.feather import Feather
from lessen.methods.tokens.random_tokens import RandomTokens
from lessen.methods.tokens.uniform_tokens import UniformTokens
from lessen.recipe import Recipe
from lessen.testing.toys import questions_about_pictures
from lessen.tokens.visual.plan import Stage
from lessen.tokens.visual.stored import StoredPooling, StoredPruning, pooling_of, pruning_of

CHOICES = [FastV, Feather, DeterminantalTokens, RandomTokens, UniformTokens]


@pytest.fixture(scope="module")
def task():
    return questions_about_pictures()


@pytest.fixture(scope="module")
def model(task):
    return task.reference()


def run(method, model, task, seed=0):
    compact, (step,) = Recipe([method]).apply(model, task, seed=seed)
    return compact, step.findings


def test_published_layers_are_scaled_to_the_depth_of_the_host(model, task):
    compact, found = run(FastV(), model, task)
    assert pruning_of(compact).pruning.stages == (Stage(1, 0.25),)
    assert found["tokens_by_layer"] == [found["tokens_in"]] + [found["tokens_in"] - 144 + 36] * 5
    compact, found = run(Feather(), model, task)
    first, second = pruning_of(compact).pruning.stages
    assert (first, second) == (Stage(2, 0.3, stride=3), Stage(3, 0.3**2))
    assert not pruning_of(compact).pruning.rope
    assert found["tokens_by_layer"][0] == found["tokens_by_layer"][1] > found["tokens_by_layer"][2]


@pytest.mark.parametrize("method", CHOICES)
def test_a_budget_of_multiply_adds_is_met_and_nearly_used(method, model, task):
    compact, found = run(method(macs=0.6), model, task)
    assert 0.56 < found["prefill_macs_share"] <= 0.6
    assert count_macs(task, compact) < count_macs(task, model)
    with pytest.raises(BudgetError, match=f"{method.card.name} cannot reach 0.010 of the multiply-adds"):
        run(method(macs=0.01), model, task)


def test_keeping_all_changes_no_bit(model, task):
    batch = task.example_batch()
    with torch.no_grad():
        whole = task.forward(model, batch)
        for method in (FastV(keep=1), Feather(keep=1), DeterminantalTokens(keep=1), DeCo(window=1)):
            assert torch.equal(task.forward(run(method, model, task)[0], batch), whole), method.card.name


def test_random_tokens_follow_the_seed(model, task):
    batch = task.example_batch()
    with torch.no_grad():
        one, same, other = (task.forward(run(RandomTokens(), model, task, seed)[0], batch) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_stages_beyond_the_decoder_and_a_second_step_are_refused(model, task):
    with pytest.raises(InputError, match=r"stage at layer 6: .* has layers 0\.\.5"):
        run(FastV(layer=6), model, task)
    compact, _ = run(FastV(), model, task)
    with pytest.raises(NothingMatchedError, match="pruned by an earlier step"):
        run(Feather(), compact, task)
    compact, _ = run(DeCo(), model, task)
    with pytest.raises(NothingMatchedError, match="pooled by an earlier step"):
        run(DeCo(), compact, task)


def test_deco_pools_before_the_projector_and_trains_it_alone(model, task):
    compact, found = run(DeCo(window=2), model, task)
    assert found["pooled"] == [6, 6]
    assert pooling_of(compact).tokens == 36
    assert count_macs(task, compact) < 0.5 * count_macs(task, model)
    outcomes = task.outcomes(compact, "validation")
    assert task.costs(outcomes)["kv_bytes"] < 0.4 * task.costs(task.outcomes(model, "validation"))["kv_bytes"]
    task.options = task.options.model_copy(update={"train_pictures": 10})
    tuned, found = run(DeCo(window=2, fine_tune_epochs=1), model, task)
    changed = {name for name, one in tuned.named_parameters() if not torch.equal(one, model.get_parameter(name))}
    assert changed
    assert all("multi_modal_projector" in name for name in changed)
    assert all(one.requires_grad for one in tuned.parameters())
    odd, found = run(DeCo(window=5), model, task)
    assert found["pooled"] == [3, 3]
    assert torch.isfinite(task.forward(odd, task.example_batch())).all()


@pytest.mark.parametrize("method", [Feather(), DeCo()])
def test_an_artifact_brings_the_patch_back(method, model, task, tmp_path):
    compact, _ = run(method, model, task)
    artifact.save(tmp_path / "small", compact, model)
    again = artifact.load(tmp_path / "small", model=model)
    batch = task.example_batch()
    with torch.no_grad():
        assert torch.equal(task.forward(again, batch), task.forward(compact, batch))


@pytest.mark.parametrize(
    "config",
    [{"target": [2], "grid": None}, {"target": [0, 2], "grid": None}, {"target": [2, 2], "grid": [True, 2]}],
)
def test_hostile_poolings_are_refused(config):
    with pytest.raises((ValueError, TypeError)):
        StoredPooling.from_config(config)
    with pytest.raises((ValueError, TypeError)):
        StoredPruning.from_config({"stages": [{"layer": 0}]})
