from __future__ import annotations

import pytest
import torch

from lessen.errors import BudgetError
from lessen.methods import builtin_methods
from lessen.methods.embeddings._shared.searched import with_settings
from lessen.methods.embeddings.mixed_precision import MixedPrecisionTables
from lessen.methods.embeddings.pep import LearnedThresholdTables
from lessen.recipe import Recipe
from lessen.testing.toys import TableTask

SEARCHED = ("emb-pep", "emb-optembed", "emb-alpt", "emb-mixed-precision", "emb-autodim", "emb-autosrh")


class Untrainable(TableTask):
    def train(self, *arguments, **keywords):
        raise AssertionError("a budget out of reach was found out only after training")


@pytest.mark.parametrize("name", SEARCHED)
def test_a_budget_out_of_reach_is_refused_before_any_training_and_the_nearest_named(name):
    task = TableTask()
    model = task.reference(0)
    with pytest.raises(BudgetError, match=rf"{name} cannot reach the share 0.003 .*nearest it can reach is 0\.\d+"):
        Recipe([builtin_methods()[name](share=0.003)]).apply(model, Untrainable())


def test_the_second_training_starts_where_the_first_did():
    task = TableTask()
    model = task.reference(0)
    result, _ = Recipe([LearnedThresholdTables(search_epochs=2)]).apply(model, still(task))
    dense, weight = result.items.dequantise(), model.items.weight.detach()
    kept = dense != 0
    assert torch.equal(dense[kept], weight[kept])
    assert torch.equal(result.first.weight, model.first.weight)


def test_a_method_may_keep_the_searched_network():
    task = TableTask()
    model = task.reference(0)
    result, _ = Recipe([MixedPrecisionTables(search_epochs=1)]).apply(model, still(task))
    assert not torch.equal(result.first.weight, model.first.weight)


def still(task):
    """Return the task with a training that moves weights while it searches, and then no more."""
    calls = []

    class Still(TableTask):
        def train(self, model, *, settings=None, **keywords):
            calls.append(settings)
            rate = 1e-2 if len(calls) == 1 else 0.0
            return super().train(model, settings=with_settings(self, epochs=2, learning_rate=rate).settings, **keywords)

    made = Still()
    assert made.settings == task.settings
    return made
