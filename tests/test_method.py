"""The Method contract: where a step may act, what a task gives, versions, and what `prepare` may change."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
import yaml
from torch import nn

from lessen.capabilities import TRAINING, capabilities
from lessen.errors import ConfigError, NothingMatchedError, TaskError
from lessen.method import Card, Context, Forecast, Method, check_needs
from lessen.methods import builtin_methods, families
from lessen.methods.embeddings.half import HalfTables
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import matches
from lessen.methods.weights.dynamic_int8 import DynamicInt8Linears
from lessen.recipe import Recipe
from lessen.stored.tables.half_embedding import HalfEmbedding
from toy import ToyNet, ToyTask


@pytest.fixture(scope="module")
def task():
    return ToyTask(examples=400)


def halved(task, **knobs):
    model, _ = Recipe([HalfTables(**knobs)]).apply(ToyNet(), task)
    return {path for path, module in model.named_modules() if isinstance(module, HalfEmbedding)}


def test_only_and_skip_are_globs_over_paths(task):
    assert halved(task) == {"left", "right"}
    assert halved(task, only="left") == {"left"}
    assert halved(task, only=["l*", "r*"]) == {"left", "right"}
    assert halved(task, skip="l*") == {"right"}
    assert halved(task, only="*", skip=("left",)) == {"right"}


def test_a_pattern_takes_what_lies_below_it():
    assert matches("encoder.layers.0.fc", "encoder")
    assert matches("encoder.layers.0.fc", "encoder.layers.*")
    assert matches("encoder.layers.0.fc", "*.fc")
    assert not matches("encoder2.fc", "encoder")
    assert not matches("encoder", "encoder.fc")


def test_a_pattern_without_a_match_is_a_question_and_one_that_leaves_nothing_is_no_match(task):
    with pytest.raises(
        ConfigError, match=r"emb-half: only = 'lft' matches no module of the model; did you mean 'left'"
    ):
        halved(task, only="lft")
    with pytest.raises(ConfigError, match="skip = 'nowhere'"):
        halved(task, skip="nowhere")
    with pytest.raises(NothingMatchedError, match="is in `skip`"):
        halved(task, skip="*")
    with pytest.raises(ConfigError, match="at least one pattern"):
        Recipe.parse({"steps": [{"emb-half": {"only": []}}]})


def test_every_method_that_replaces_modules_takes_only_and_skip():
    plain = {name for name, cls in builtin_methods().items() if not issubclass(cls, ModuleMethod)}
    whole = {"intactkv", "kivi", "quarot"}  # what a model keeps of its tokens, and a stream that all layers read
    assert {name for name in plain if builtin_methods()[name].card.family in ("embeddings", "weights")} == whole


def test_unused_scopes_change_no_hash_and_used_ones_do():
    plain = Recipe([HalfTables()])
    assert "only" not in plain.describe()["steps"][0]["emb-half"]
    assert plain.hash == Recipe([HalfTables(only=None)]).hash != Recipe([HalfTables(only="left")]).hash


@pytest.mark.parametrize("name", ["demo", "features-movielens", "tokens"])
def test_recipes_of_committed_studies_keep_their_hashes(name):
    folder = Path(__file__).parents[1] / "benchmarks" / "results" / name
    if not folder.is_dir():
        pytest.skip("benchmarks are not part of this installation")
    recipes = {
        item["name"]: Recipe.parse(item) for item in yaml.safe_load((folder / "study.yaml").read_text())["recipes"]
    }
    records = [json.loads(line) for line in (folder / "measurements.jsonl").read_text().splitlines()]
    assert records
    assert any(step.version == 1 for recipe in recipes.values() for step in recipe.steps)
    for record in records:
        recipe = recipes[record["recipe"]]
        if all(step.version == 1 for step in recipe.steps):  # a raised version says that figures would differ
            assert recipe.hash == record["recipe_hash"], record["recipe"]


def test_versions_are_written_and_checked():
    recipe = Recipe([DynamicInt8Linears()])
    (step,) = recipe.describe()["steps"]
    assert step["linear-int8"]["version"] == DynamicInt8Linears.version
    assert Recipe.parse(recipe.describe()) == recipe
    for wrong in (7, "1", None, True):
        with pytest.raises(ConfigError, match="linear-int8 version .* is not the one here"):
            Recipe.parse({"steps": [{"linear-int8": {"version": wrong}}]})


def test_the_family_of_a_card_is_its_folder():
    for name, cls in builtin_methods().items():
        assert cls.__module__.split(".")[2] == cls.card.family, name
    for family in families():
        assert importlib.import_module(f"lessen.methods.{family}").__doc__, family


def test_capabilities_are_seen_by_members_and_can_be_withheld(task):
    assert capabilities(task) == TRAINING
    teaching = task.view(teacher=lambda seed: nn.Identity(), withheld=frozenset({"training"}))
    assert capabilities(teaching) == TRAINING - {"training"} | {"teacher"}
    learns = Card("learns", "distil", "Learns.", (), "nobody", needs=frozenset({"teacher", "training"}))

    class Learner(Method):
        card = learns

    with pytest.raises(TaskError, match="learns needs teacher, which task 'toy' does not provide"):
        check_needs(Learner(), task)
    with pytest.raises(TaskError, match="learns needs training"):
        check_needs(Learner(), teaching)
    check_needs(Learner(), task.view(teacher=lambda seed: nn.Identity()))
    with pytest.raises(ValueError, match="needs 'teachers'; known: bank, calibration"):
        dataclasses.replace(learns, needs=frozenset({"teachers"}))


def test_a_view_changes_what_it_names_and_leaves_the_task_alone(task):
    view = task.view(name="other", loss=lambda model, batch: torch.zeros(()))
    assert (view.name, task.name) == ("other", "toy")
    batch = task.example_batch()
    assert view.loss(ToyNet(), batch) == 0 != task.loss(ToyNet(), batch)
    assert view.fingerprint() == task.fingerprint()
    with pytest.raises(TaskError, match="cannot change 'lost'"):
        task.view(lost=1)


class FewerRows(Method):
    """Trains on the first batches only."""

    card = Card("fewer-rows", "data", "Train on less.", ("data",), "this test", claims=frozenset())
    split: str = "train"

    def prepare(self, task, context):
        def batches(split, seed=0):
            for number, batch in enumerate(task.batches(split, seed)):
                if split != self.split or number == 0:
                    yield batch

        return task.view(batches=batches)


class Counting(Method):
    """Records how many training batches it sees."""

    card = Card("counting", "data", "Count batches.", ("data",), "this test", claims=frozenset())

    def apply(self, model, task, context):
        context.findings["batches"] = len(list(task.batches("train")))
        return model


def test_prepare_reaches_later_steps_and_never_the_judge(task):
    task = ToyTask(examples=1200)
    _, ledger = Recipe([Counting(), FewerRows(), Counting()]).apply(ToyNet(), task)
    assert [step.findings.get("batches") for step in ledger] == [3, None, 1]
    with pytest.raises(TaskError, match="fewer-rows changes the validation or test data of task 'toy'"):
        Recipe([FewerRows(split="test")]).apply(ToyNet(), task)


def test_a_forecast_weighs_tables_without_training(task):
    model, known = ToyNet(rows=4000), MappingProxyType({})
    method = builtin_methods()["emb-hash"](min_rows=1)
    found = method.forecast(model, task, Context(known=dict(known)))
    assert isinstance(found, Forecast)
    assert found.bytes is not None
    assert 0 < found.smallest < 1
    assert DynamicInt8Linears().forecast(model, task, Context()) is None
