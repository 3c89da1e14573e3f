"""BiLLM against sums written out, and its bits counted honestly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from host_models import answer, host, inputs
from host_words import Words
from lessen.method import Context
from lessen.methods.sites import module_bytes
from lessen.methods.weights._shared.binarising import binarise, once, salient_columns, threshold, twice
from lessen.methods.weights._shared.error_feedback import feedback, output_error
from lessen.methods.weights.billm import BiLLM
from lessen.stored.linears.billm import BiLLMLinear, layer_bytes
from lessen.testing.toys import TableTask


def problem(outputs=24, width=96, rows=300, seed=0):
    torch.manual_seed(seed)
    data = torch.randn(rows, width) @ torch.randn(width, width) + torch.randn(width)
    weight = torch.randn(outputs, width)
    weight[:, 7] *= 5
    return weight, data.t() @ data / rows


def stored(weight, spread, block, split):
    found = binarise(weight, spread, block, split)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made = BiLLMLinear.from_parts(layer, block, found.signs, found.second, found.salient, found.levels)
    made.check()
    return found, made


def test_once_and_twice_are_means_and_mean_distances():
    weights = torch.tensor([[1.0, 2.0, 6.0, -1.0]])
    values, alpha, mean = once(weights)
    assert (float(alpha), float(mean)) == (2.0, 2.0)
    assert values.tolist() == [[0.0, 4.0, 4.0, 0.0]]
    again, (strong, fine, middle) = twice(weights)
    left = weights - values  # 1, -2, 2, -1
    assert (float(strong), float(fine), float(middle)) == (2.0, 1.5, 2.0)
    assert again.tolist() == (values + torch.where(left >= 0, 1.5, -1.5)).tolist()
    _, alpha, mean = once(weights, torch.tensor([[True, True, False, False]]))
    assert (float(alpha), float(mean)) == (0.5, 1.5)


@pytest.mark.parametrize("split", [True, False])
def test_what_is_stored_decodes_to_what_loops_say(split):
    weight, curvature = problem()
    found, made = stored(weight, feedback(curvature, 0.01, False), 32, split)
    dense = made.dequantise()
    for row in (0, 11):
        for column in range(96):
            levels = found.levels[row, column // 32].float().tolist()
            sign, other = (1 if one[row, column] else -1 for one in (found.signs, found.second))
            if found.salient[column]:
                expected = sign * levels[-3] + other * levels[-2] + levels[-1]
            elif split and other > 0:
                expected = sign * levels[2] + levels[3]
            else:
                expected = sign * levels[0] + levels[1]
            assert float(dense[row, column]) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_without_correlations_each_block_stands_alone():
    """Ordinary weights are then the nearest that their class, block by block, allows."""
    weight, _ = problem()
    found, made = stored(weight, feedback(torch.eye(96), 0.01, False), 32, False)
    for start in (0, 32, 64):
        part, salient = weight[:, start : start + 32], found.salient[start : start + 32]
        dense = made.dequantise()[:, start : start + 32]
        assert torch.allclose(dense[:, ~salient], once(part[:, ~salient])[0], atol=5e-3)
        assert torch.allclose(dense[:, salient], twice(part[:, salient])[0], atol=5e-3)


def test_a_column_that_sticks_out_gets_two_signs_and_a_threshold_parts_two_sizes():
    weight, _ = problem(width=32)
    assert bool(salient_columns(weight, torch.ones(32))[7])
    sizes = torch.where(torch.arange(4096).view(16, 256) % 5 == 0, 3.0, 0.5)
    sizes = sizes * torch.randn(16, 256).sign() * (1 + 0.02 * torch.randn(16, 256))
    assert 0.6 < threshold(sizes) < 2.9


@pytest.mark.parametrize("split", [True, False])
def test_errors_go_on_to_later_blocks(split):
    weight, curvature = problem(outputs=32)
    spread = feedback(curvature, 0.01, False)
    alone = replace(spread, upper=torch.diag(spread.upper.diagonal()))
    errors = [
        output_error(stored(weight, one, 16, split)[1].dequantise() - weight, curvature) for one in (spread, alone)
    ]
    assert errors[0] < 0.8 * errors[1]


def test_what_goes_on_is_the_closed_form_of_the_whole_block():
    """Of an error D in block b, weights to come move by -D (H^-1)_bb^-1 (H^-1)_b,later: no later column feels less."""
    weight, curvature = problem(width=64)
    found, made = stored(weight, feedback(curvature, 0.1, False), 32, False)
    away = weight[:, :32].double() - made.dequantise()[:, :32].double()
    inverse = torch.linalg.inv(curvature.double() + 0.1 * curvature.diagonal().mean() * torch.eye(64))
    moved = weight[:, 32:].double() - away @ torch.linalg.solve(inverse[:32, :32], inverse[:32, 32:])
    plain = ~found.salient[32:]
    assert torch.allclose(made.dequantise()[:, 32:][:, plain], once(moved.float()[:, plain])[0], atol=1e-2)
    assert torch.allclose(made.dequantise()[:, 32:][:, ~plain], twice(moved.float()[:, ~plain])[0], atol=1e-2)


def test_bits_are_counted_with_masks_and_levels():
    weight = torch.randn(64, 256)
    spread = feedback(torch.eye(256), 0.01, False)
    layer = nn.Linear(256, 64, bias=False)
    _, made = stored(weight, spread, 128, True)
    assert 8 * module_bytes(made) == (2 + 112 / 128) * weight.numel() + 256
    assert layer_bytes(layer, 128, True) == module_bytes(made)
    found, made = stored(weight, spread, 256, False)
    salient = int(found.salient.sum())
    assert 8 * module_bytes(made) == (1 + 80 / 256) * weight.numel() + 64 * 8 * -(-salient // 8) + 256
    assert layer_bytes(layer, 256, False) == module_bytes(made) - 64 * -(-salient // 8)


@pytest.mark.parametrize("knobs", [{}, {"split": False, "block": None}, {"hessian": "output", "block": 16}])
def test_a_host_is_made_smaller_and_answers(knobs):
    context = Context()
    made = BiLLM(**{"block": 16, "min_weights": 1} | knobs).apply(host("llama"), Words("llama"), context)
    layers = [module for module in made.modules() if isinstance(module, BiLLMLinear)]
    assert len(layers) == len(context.findings["layers"]) == len(context.findings["salient"]) == 14
    assert bool(torch.isfinite(answer(made, inputs("llama"))).all())


def test_a_dead_layer_is_named_and_stays_dead():
    task = TableTask()
    model = task.build()
    with torch.no_grad():
        model.second.weight.zero_()
    context = Context()
    made = BiLLM(only="second").apply(model, task, context)
    assert context.findings["dead"] == ["second"]
    assert not bool(made.second.dequantise().any())


def test_what_does_not_fit_is_refused():
    weight, curvature = problem()
    _, made = stored(weight, feedback(curvature, 0.01, False), 32, False)
    before = made.salient.clone()
    made.salient.fill_(255)
    with pytest.raises(ValueError, match="salient names 96 columns"):
        made.check()
    made.salient.copy_(before)
    made.levels[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="levels hold NaN"):
        made.check()
    for changed in ({"block": 97}, {"split": 1}, {"salient": 97}, {"bias": None}):
        with pytest.raises((ValueError, TypeError), match=next(iter(changed))):
            BiLLMLinear.from_config({**made.config(), **changed})
