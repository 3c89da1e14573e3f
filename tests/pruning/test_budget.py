"""Budgets: what is chosen costs what it may, in multiples, and is worth the most."""

from __future__ import annotations

import pytest
import torch

from host_models import answer, host, inputs
from lessen.errors import BudgetError
from lessen.pruning.budget import Values, by_shares, fit_budget, fit_evenly
from lessen.pruning.choice import Choice
from lessen.pruning.costs import read_costs
from lessen.pruning.layout import read_layout
from lessen.pruning.scores import by_magnitude, by_slope


@pytest.fixture(scope="module")
def costs():
    model = host("llama", intermediate_size=256, num_hidden_layers=3)
    return read_costs(read_layout(model), lambda: answer(model, inputs("llama")), 2)


def drawn(costs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Values(
        {one.path: torch.rand(one.groups, generator=generator) for one in costs.layout.layers},
        {one.path: torch.rand(one.hidden, generator=generator) for one in costs.layout.layers},
    )


@pytest.mark.parametrize("of", ["macs", "parameters"])
@pytest.mark.parametrize("share", [0.75, 0.5])
def test_the_budget_is_met_within_one_step_and_counts_are_multiples(costs, of, share):
    limit = share * costs.total(of)
    choice = fit_budget(costs, drawn(costs), limit, of, 16, by_cost=True, start=Choice())
    step = max(costs.atom(of, costs.layout.layers[0], "unit", Choice()) * 16,
               costs.atom(of, costs.layout.layers[0], "group", Choice()))  # fmt: skip
    assert limit - step < costs.total(of, choice) <= limit
    assert all(int(kept.sum()) % 16 == 0 for kept in choice.units.values())
    even = fit_evenly(costs, drawn(costs), limit, of, 16, Choice())
    assert len({(int(even.heads[p].sum()), int(even.units[p].sum())) for p in even.heads}) == 1
    assert costs.total(of, even) <= limit


def test_the_least_valued_go_first(costs):
    values = drawn(costs)
    dead = costs.layout.layers[1].path
    values.units[dead][64:] = 0.0
    limit = costs.total("parameters") - 192 * costs.atom("parameters", costs.layout.layers[1], "unit", Choice())
    choice = fit_budget(costs, values, limit, "parameters", 16, by_cost=True, start=Choice())
    assert choice.units[dead].tolist() == [True] * 64 + [False] * 192
    assert all(bool(kept.all()) for path, kept in (*choice.units.items(), *choice.heads.items()) if path != dead)


def test_shares_are_of_every_block(costs):
    choice = by_shares(drawn(costs), 0.5, 0.25, 16, Choice())
    assert {int(kept.sum()) for kept in choice.heads.values()} == {1}
    assert {int(kept.sum()) for kept in choice.units.values()} == {64}
    with pytest.raises(BudgetError, match="units = 0.01 would leave"):
        by_shares(drawn(costs), None, 0.01, 16, Choice())


def test_slopes_are_those_of_a_factor_on_the_part():
    model = host("minilm")
    layout = read_layout(model)
    given = [inputs("minilm", batch=1, seed=seed) for seed in range(2)]
    found = by_slope(layout, iter([lambda g=g: model(**g).last_hidden_state.pow(3).mean() for g in given]))
    layer = layout.layers[1]
    down, step = layer.block.feed_forward.down.module, 1e-3
    squares = []
    for g in given:
        ends = []
        for sign in (1, -1):
            before = down.weight.data.clone()
            down.weight.data[:, 7] *= 1 + sign * step
            with torch.no_grad():
                ends.append(model(**g).last_hidden_state.double().pow(3).mean())
            down.weight.data.copy_(before)
        squares.append(float((ends[0] - ends[1]) / (2 * step)) ** 2)
    assert float(found.units[layer.path][7]) == pytest.approx(sum(squares) / 2, rel=0.02)


def test_the_size_of_weights_counts_all_that_a_part_takes_along():
    layout = read_layout(host("llama"))
    found = by_magnitude(layout)
    for layer in layout.layers:
        attention, feeding = layer.block.attention, layer.block.feed_forward
        mats = (attention.query, attention.key, attention.value, attention.output)
        assert float(found.heads[layer.path].sum()) == pytest.approx(
            sum(float(part.module.weight.square().sum()) for part in mats), rel=1e-5
        )
        mats = (feeding.up, feeding.gate, feeding.down)
        assert float(found.units[layer.path].sum()) == pytest.approx(
            sum(float(part.module.weight.square().sum()) for part in mats), rel=1e-5
        )
