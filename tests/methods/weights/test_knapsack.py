"""Widths within a budget of bytes: the least harm, as brute force has it, and quick where sums of bytes are many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lessen.errors import BudgetError
from lessen.methods.weights._shared.knapsack import allocate


def drawn(draw, whole):
    """Layers of up to four choices of few bytes; harms whole numbers, with ties, or any."""
    harm = (lambda: float(draw.integers(0, 9))) if whole else (lambda: float(draw.normal()))
    return [
        [(int(draw.integers(1, 30)), harm()) for _ in range(draw.integers(1, 5))] for _ in range(draw.integers(1, 6))
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_the_least_harm_is_that_of_all_combinations(whole):
    draw = np.random.default_rng(0)
    for _ in range(300):
        layers = drawn(draw, whole)
        least, most = (sum(one(size for size, _ in choices) for choices in layers) for one in (min, max))
        budget = int(draw.integers(least, most + 1))
        taken = allocate(layers, budget, "test")
        spent, harm = (sum(layer[pick][part] for layer, pick in zip(layers, taken, strict=True)) for part in (0, 1))
        assert spent <= budget
        combinations = itertools.product(*layers)
        best = min(sum(h for _, h in each) for each in combinations if sum(s for s, _ in each) <= budget)
        assert harm == pytest.approx(best, abs=1e-9)
        with pytest.raises(BudgetError, match=f"the smallest that its layers can take is {least} bytes"):
            allocate(layers, least - 1, "test")


@pytest.mark.parametrize("sizes", [[4096 * 4096, 4096 * 11008, 128 * 4096], range(100_003, 200_003, 97)])
def test_a_thousand_layers_of_many_sizes_fill_the_budget(sizes):
    draw = np.random.default_rng(0)
    layers = []
    for size in draw.choice(list(sizes), 1000):
        scale = draw.lognormal(0, 1.5) * size
        layers.append([(int(size * bits / 8), float(scale * 4.0**-bits * draw.uniform(0.8, 1.2))) for bits in BITS])
    budget = sum(layer[4][0] for layer in layers) + 12345
    taken = allocate(layers, budget, "test")
    spent = sum(layer[pick][0] for layer, pick in zip(layers, taken, strict=True))
    assert 0.9999 * budget < spent <= budget
    harm = sum(layer[pick][1] for layer, pick in zip(layers, taken, strict=True))
    swaps = [(at, pick) for at, layer in enumerate(layers) for pick in range(len(layer))]
    for at, pick in swaps:  # no single change that fits is better
        more = layers[at][pick][0] - layers[at][taken[at]][0]
        assert spent + more > budget or layers[at][pick][1] >= layers[at][taken[at]][1] - 1e-9 * harm


BITS = (2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 8, 16)
