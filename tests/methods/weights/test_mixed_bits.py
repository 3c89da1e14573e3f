"""Mixed widths: the knapsack is exact, sensitivities follow the loss, bytes are those that were promised."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calibrated_hosts import Host
from host_models import answer, host, inputs
from host_words import Words
from lessen.errors import BudgetError, NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.sites import module_bytes, state_bytes
from lessen.methods.weights._shared.knapsack import allocate
from lessen.methods.weights.mixed_bits import MixedBits, by_lot
from lessen.recipe import Recipe
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.testing.toys import TableTask

LAYER = st.lists(st.tuples(st.integers(1, 30), st.floats(0, 10)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(layers=st.lists(LAYER, min_size=1, max_size=5), spare=st.integers(0, 60))
def test_no_other_allocation_within_the_budget_does_less_harm(layers, spare):
    budget = sum(min(size for size, _ in own) for own in layers) + spare
    taken = allocate(layers, budget, "x")
    assert sum(own[pick][0] for own, pick in zip(layers, taken, strict=True)) <= budget
    best = min(
        sum(harm for _, harm in picks) for picks in itertools.product(*layers) if sum(s for s, _ in picks) <= budget
    )
    assert sum(own[pick][1] for own, pick in zip(layers, taken, strict=True)) == pytest.approx(best, abs=1e-9)


def test_a_deep_model_is_shared_out_in_a_moment():
    generator = np.random.default_rng(0)
    layers = [[(1000 * w * b, float(generator.random()) / 4**b) for b in (2, 3, 4, 6, 8)] for w in (1, 3, 9) * 70]
    taken = allocate(layers, sum(own[2][0] for own in layers), "x")
    assert len(taken) == 210


def test_a_budget_below_the_smallest_is_refused_by_the_smallest():
    with pytest.raises(BudgetError, match="linear-mixed-bits: 10 bytes are too few; the smallest .* is 25 bytes"):
        allocate([[(20, 1.0), (30, 0.5)], [(5, 0.0)]], 10, "linear-mixed-bits")
    with pytest.raises(BudgetError, match="the smallest that its layers can take is"):
        MixedBits(average=2, min_weights=64, allocation="uniform").apply(host("llama"), Host("llama"), Context())


def test_feedback_without_feedback_is_refused():
    with pytest.raises(ValueError, match="rounding=gptq"):
        MixedBits(refit=2)


def applied(model, task, **knobs):
    context = Context()
    return MixedBits(min_weights=64, group=32, table_bits=None, **knobs).apply(model, task, context), context.findings


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"allocation": "random"},
        {"allocation": "uniform"},
        {"rounding": "gptq"},
        {"scale_bits": 6, "rounding": "gptq", "hessian": "tokens", "refit": 1},
    ],
)
def test_bytes_are_as_promised_and_within_the_budget(knobs):
    made, findings = applied(host("llama"), Host("llama"), average=5.0, skip="lm_head", **knobs)
    layers = {path: m for path, m in made.named_modules() if isinstance(m, GroupQuantizedLinear)}
    assert {path: layer.bits for path, layer in layers.items()} == findings["allocation"]
    assert sum(map(module_bytes, layers.values())) == findings["bytes"] <= findings["budget"]
    assert set(findings["layers"]) == set(layers)
    if not knobs:
        assert len(set(findings["allocation"].values())) > 1


def test_more_bits_do_less_harm_and_slopes_rank_layers_as_the_loss_does():
    task = TableTask()
    model = task.reference(0)
    found = {}
    for sensitivity in ("slopes", "loss"):
        method = MixedBits(average=6, min_weights=64, sensitivity=sensitivity, widths=(2, 3, 4, 8))
        _, ledger = Recipe([method]).apply(model, task)
        found[sensitivity] = ledger[0].findings["sensitivity"]
    assert set(found["slopes"]) == set(found["loss"]) == {"first", "second", "last"}
    for own in found["slopes"].values():
        assert own["2"] > own["3"] > own["4"] > own["8"] >= 0
    order = {name: max(layers, key=lambda path, of=layers: of[path]["2"]) for name, layers in found.items()}
    assert order["slopes"] == order["loss"]


def test_what_was_measured_beats_chance_at_equal_bytes():
    """A model one of whose layers does nothing: its bits are better spent elsewhere."""
    model = host("llama")
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data[::2] *= 1e-3  # dead hidden units make down's columns free, and up cheap
        layer.self_attn.q_proj.weight.data *= 0.05
    exact, errors = answer(model, inputs("llama")), {}
    for allocation in ("exact", "uniform"):
        copy = host("llama")
        copy.load_state_dict(model.state_dict())
        made, _ = applied(copy, Host("llama"), average=4.0, skip="lm_head", allocation=allocation)
        errors[allocation] = float((answer(made, inputs("llama")) - exact).norm() / exact.norm())
    assert errors["exact"] < errors["uniform"]


def test_chance_fills_the_budget():
    sizes = [[10, 20, 30]] * 20
    taken = by_lot(sizes, 430, torch.Generator().manual_seed(0))
    assert 420 < sum(own[pick] for own, pick in zip(sizes, taken, strict=True)) <= 430
    assert taken != by_lot(sizes, 430, torch.Generator().manual_seed(1))


def test_what_cannot_be_done_is_one_line():
    class Empty(Host):
        def batches(self, split, seed=0):
            return []

    with pytest.raises(TaskError, match="no calibration batches"):
        applied(host("llama"), Empty("llama"), average=6)
    with pytest.raises(NothingMatchedError, match="linear-mixed-bits found nothing to act on"):
        applied(nn.Sequential(nn.Tanh()), Host("llama"))
    with pytest.raises(ValueError, match="each once"):
        MixedBits(widths=(3, 3))
    _, findings = applied(host("llama"), Host("llama"), budget=10**9)
    assert set(findings["allocation"].values()) == {8}


@pytest.mark.parametrize("tied", [True, False])
def test_a_forecast_is_what_is_made_with_the_budget_spent(tied):
    task, model = Words("llama"), host("llama", tie_word_embeddings=tied)
    method = MixedBits(average=4.0, group=32, min_weights=1, calibration_batches=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = method.forecast(model, task, Context())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    made, ledger = Recipe([method]).apply(model, task)
    unspent = ledger[0].findings["budget"] - ledger[0].findings["bytes"]
    assert said.bytes == state_bytes(made) + unspent
    assert 0 < said.smallest < 4.0 / 32
