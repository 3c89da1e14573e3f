"""VTrans on hosts that are not ours: the budget, what moves, what trained masks know."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers", reason="the [hf] extra is not installed")

from calibrated_hosts import Host
from host_models import answer, host, inputs
from lessen.errors import TaskError
from lessen.method import Context
from lessen.methods.weights.vtrans import VTrans
from lessen.recipe import Recipe
from words import Words


class Trainable(Host):
    """The random host with something to validate by."""

    def train(self, model, **options):
        return super().train(model, **{**options, "validate": lambda _: 0.0})


@pytest.mark.parametrize("name", ["minilm", "clip", "llama"])
@pytest.mark.parametrize("train", ["masks", "all"])
def test_the_budget_holds_and_weights_move_only_where_they_may(name, train):
    model, task = host(name), Trainable(name)
    before = copy.deepcopy(dict(model.named_parameters()))
    method = VTrans(share=0.8, of="parameters", multiple=4, steps=4, train=train)
    made, records = Recipe([method]).apply(model, task)
    whole, left = (sum(p.numel() for p in one.parameters()) for one in (model, made))
    assert 0.8 * whole * 0.97 < left <= 0.8 * whole
    assert records[0].findings["sparsity"]["asked"] == pytest.approx(0.2, abs=1e-4)
    same = [n for n, p in made.named_parameters() if "norm" in n.lower() and n in before and torch.equal(p, before[n])]
    norms = [n for n in before if "norm" in n.lower()]
    assert (len(same) == len(norms)) == (train == "masks")
    assert all(parameter.requires_grad for parameter in made.parameters())
    assert torch.isfinite(answer(made, inputs(name))).all()


@pytest.mark.parametrize(("by", "kl"), [("labels", 1e-3), ("teacher", 1e-5)])  # answers pull less than labels
def test_masks_find_the_units_that_nothing_reads(by, kl):
    task = Words(2)
    torch.manual_seed(0)
    model = task.build().eval()
    task.train(model)
    dead = {layer: torch.arange(24) % 3 == 0 for layer in range(2)}
    for layer, marks in dead.items():
        model.model.layers[layer].mlp.down_proj.weight.data[:, marks] = 0
    before = task.score(model)
    costs = VTrans(units=0.67, multiple=1, steps=120, mask_rate=0.15, kl=kl, by=by)
    made, _ = Recipe([costs]).apply(model, task)
    assert {layer.mlp.down_proj.in_features for layer in made.model.layers} == {16}
    assert task.score(made) > before - 0.05


def test_masks_that_learn_from_answers_hold_the_budget_and_draw_alike():
    model = host("minilm")
    given = {"share": 0.8, "of": "parameters", "multiple": 4, "steps": 4, "by": "teacher"}
    made, records = Recipe([VTrans(**given)]).apply(model, Trainable("minilm"))
    assert records[0].findings["sparsity"]["asked"] > 0
    again, _ = Recipe([VTrans(**given)]).apply(host("minilm"), Trainable("minilm"))
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))


def test_a_teacher_is_the_model_that_a_recipe_was_given():
    with pytest.raises(TaskError, match="learns from the model that a recipe was given"):
        VTrans(train="all", multiple=4).apply(host("llama"), Trainable("llama"), Context(seed=0))
