"""Magnitude, Wanda and SparseGPT: closed forms, the order of their errors, hosts that are not ours, and bad input."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from calibrated_hosts import Host
from host_models import answer, host, inputs
from lessen.cli.arguments import parse_step
from lessen.errors import NonFiniteError, NothingMatchedError
from lessen.method import Context
from lessen.methods.weights._shared.error_feedback import feedback, output_error
from lessen.methods.weights._shared.sparse_solving import remove_with_feedback
from lessen.methods.weights.magnitude_sparsity import MagnitudeSparsity
from lessen.methods.weights.sparsegpt import SparseGPT
from lessen.methods.weights.wanda import Wanda
from lessen.recipe import Recipe
from lessen.sparsity.pattern import Pattern
from lessen.stored.linears.sparse import SparseConv, SparseLinear
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask
from lessen.testing.toys import TableTask


def problem(outputs=12, width=32, rows=200, seed=0):
    torch.manual_seed(seed)
    data = torch.randn(rows, width) @ torch.randn(width, width) + torch.randn(width)
    return torch.randn(outputs, width), data.t() @ data / rows


def reference(weight, curvature, pattern, damping):
    """Remove a run's least weights when its turn comes; move all that are left by the inverse, eliminate the column."""
    weight, curvature = weight.double().clone(), curvature.double()
    width = len(curvature)
    inverse = torch.linalg.inv(curvature + damping * curvature.diagonal().mean() * torch.eye(width).double())
    stays = torch.ones(weight.shape, dtype=torch.bool)
    for column in range(width):
        if column % pattern.m == 0:
            run = slice(column, column + pattern.m)
            # what each weight of the run costs once those before it in the run are gone, as Cholesky factors say
            part = torch.linalg.cholesky(inverse[column:, column:], upper=True).diagonal()[: pattern.m]
            stays[:, run] = pattern.mask(weight[:, run].square() / part.square())
        error = torch.where(stays[:, column], 0.0, weight[:, column])
        weight[:, column] -= error
        for other in range(column + 1, width):
            weight[:, other] -= error * inverse[column, other] / inverse[column, column]
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return weight, stays


@pytest.mark.parametrize("text", ["2:4", "1:8", "3:16"])
def test_sparsegpt_is_the_optimal_brain_surgeon_column_by_column(text):
    weight, curvature = problem()
    pattern = Pattern.parse(text)
    found, stays = remove_with_feedback(weight, feedback(curvature, 0.01, False), pattern, block=8)
    expected, kept = reference(weight, curvature, pattern, 0.01)
    assert torch.equal(stays, kept)
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_without_correlations_sparsegpt_is_wanda_of_equal_inputs():
    weight, _ = problem()
    pattern = Pattern.parse("2:4")
    found, stays = remove_with_feedback(weight, feedback(torch.eye(32), 0.01, False), pattern)
    assert torch.equal(stays, pattern.mask(weight.abs()))
    assert torch.equal(found, weight * stays)


@pytest.mark.parametrize("pattern", [Pattern(0.5), Pattern(0.25), Pattern.parse("2:4")])
def test_outputs_move_least_by_sparsegpt_then_wanda_then_magnitude(pattern):
    for seed in range(5):
        weight, curvature = problem(outputs=64, seed=seed)
        curvature = curvature * torch.outer(*[torch.logspace(-1, 1, 32)] * 2)
        magnitude = weight * pattern.mask(weight.abs())
        wanda = weight * pattern.mask(weight.abs() * curvature.diagonal().sqrt(), by_row=True)
        solved, _ = remove_with_feedback(weight, feedback(curvature, 0.01, False), pattern)
        errors = [output_error(each - weight, curvature) for each in (solved, wanda, magnitude)]
        assert errors[0] < 0.95 * min(errors[1:])
        assert errors[1] < errors[2] or pattern.m


def test_codes_are_rounded_on_the_way():
    weight, curvature = problem(outputs=64)
    scales = weight.abs().amax(1) / 127
    pattern, spread = Pattern.parse("2:4"), feedback(curvature, 0.01, False)
    found, stays = remove_with_feedback(weight, spread, pattern, scales)
    codes = found / scales.unsqueeze(1)
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert bool((stays.view(64, -1, 4).sum(-1) == 2).all())
    assert bool((found[~stays] == 0).all())


METHODS = {"magnitude": MagnitudeSparsity, "wanda": Wanda, "sparsegpt": SparseGPT}


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
@pytest.mark.parametrize("method", METHODS)
def test_hosts_that_are_not_ours_get_sparse_layers(name, method):
    made_by = METHODS[method](pattern="2:4", min_weights=1)
    context = Context()
    made = made_by.apply(host(name), Host(name), context)
    layers = {path: m for path, m in made.named_modules() if isinstance(m, (SparseLinear, SparseConv))}
    assert set(layers) == set(context.findings["layers"])
    assert len(layers) >= 4
    for layer in layers.values():
        assert bool(((layer.matrix.dequantise().view(-1, 4) != 0).sum(1) <= 2).all())
    assert bool(torch.isfinite(answer(made, inputs(name))).all())
    density = context.findings["density"]
    assert density["of the sparse layers"] == 0.5 < density["of all weights"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.modules())


def test_a_convolutional_network_trains_on_under_its_masks():
    task = ShapesTask(ShapesOptions(examples=160))
    torch.manual_seed(0)
    model = task.build()
    before = {path: m.weight.detach().clone() for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    made = MagnitudeSparsity(density=0.3, fine_tune_epochs=1, min_weights=64).apply(model, task, Context())
    layers = {path: m for path, m in made.named_modules() if isinstance(m, SparseConv)}
    assert layers
    for path, layer in layers.items():
        kept = Pattern(0.3).mask(before[path].movedim(1, -1).flatten(1).abs())
        assert torch.equal(layer.matrix.mask(slice(0, layer.out_channels)), kept)
        assert not torch.equal(layer.matrix.dequantise(), before[path].movedim(1, -1).flatten(1) * kept)


def test_weights_of_all_layers_compete():
    task = TableTask()
    torch.manual_seed(0)
    model = task.build()
    with torch.no_grad():
        model.first.weight.mul_(0.01)
    context = Context()
    made = MagnitudeSparsity(density=0.5, among="model", min_weights=64).apply(model, task, context)
    assert isinstance(made.second, SparseLinear)
    kept = [
        context.findings["layers"][path]["kept"]
        for path in ("first", "second", "last")
        if path in context.findings["layers"]
    ]
    assert min(kept) < 0.3 < 0.6 < max(kept)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"pattern": "4:2"}, "N:M needs 1 <= N < M"),
        ({"pattern": "half"}, "a pattern is N:M"),
        ({"pattern": "2:4", "density": 0.5}, "says the density"),
        ({"activations": "int8"}, "needs values=int8"),
        ({"density": 1.5}, "less than or equal to 0.95"),
    ],
)
def test_patterns_that_make_no_sense(knobs, said):
    with pytest.raises(ValidationError, match=said):
        MagnitudeSparsity(**knobs)


@pytest.mark.parametrize("text", ["2:4", "1:16", "1:32", "8:64"])
@pytest.mark.parametrize("name", ["wanda", "nm-progressive"])
def test_patterns_come_as_they_were_written_through_the_command_line_and_recipes(name, text):
    step = parse_step(f"{name}:pattern={text},values=int8")
    (method,) = Recipe.parse({"name": "row", "steps": [step]}).steps
    assert method.pattern == text


def test_n_of_m_that_does_not_divide_the_inputs_is_said():
    model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 1))
    with pytest.raises(NothingMatchedError, match="its 30 inputs are no multiple of 4: 2:4 does not divide them"):
        MagnitudeSparsity(pattern="2:4", min_weights=1, only="0").apply(model, TableTask(), Context())


def test_what_would_not_be_smaller_stays():
    model = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(NothingMatchedError, match="take no fewer bytes than now"):
        MagnitudeSparsity(density=0.95, min_weights=1, values="same").apply(model.half(), TableTask(), Context())


def test_calibration_data_that_are_no_numbers_are_named():
    class Broken(Host):
        def batches(self, split, seed=0):
            return [
                ({"pixel_values": torch.full_like(batch["pixel_values"], torch.nan)}, y)
                for batch, y in super().batches(split, seed)
            ]

    for method in (Wanda, SparseGPT):
        with pytest.raises(NonFiniteError, match="NaN or infinity to .*; clean"):
            method(min_weights=1).apply(host("vit"), Broken("vit"), Context())
