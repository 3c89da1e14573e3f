"""Splitting layers of any host: the tail is the error, budgets are kept, a control, and a convolution written out."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from calibrated_hosts import Host
from host_models import answer, host, inputs
from lessen.errors import BudgetError, NothingMatchedError
from lessen.method import Context
from lessen.methods.calibration import Moments, principal_axes
from lessen.methods.sites import Site, module_bytes
from lessen.methods.weights._shared.factoring import (
    Directions,
    factored_bytes,
    largest_rank,
    of_weight,
    ranks_within,
    split,
)
from lessen.methods.weights.feature_mimicking import FeatureMimicking
from lessen.stored.linears.low_rank import LowRankLinear
from lessen.stored.linears.low_rank_conv import LowRankConv
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask


def found(outputs):
    moments = Moments(outputs.shape[1])
    moments.add(outputs.movedim(1, -1).flatten(0, -2) if outputs.dim() > 2 else outputs)
    return Directions(*principal_axes(moments.covariance), moments.mean)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_a_convolution_loses_the_tail_of_its_outputs(rank):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 12, 3, stride=2, padding=1)
    given = torch.randn(40, 3, 9, 9)
    with torch.no_grad():
        outputs = layer(given)
        directions = found(outputs)
        made = split(layer, directions, rank)
        error = (made(given) - outputs).double().square().sum(1).mean()
    assert float(error) == pytest.approx(float(directions.energies[rank:].sum()), rel=1e-3, abs=1e-8)
    assert module_bytes(made) == factored_bytes(layer, rank)
    assert torch.allclose(
        made.dequantise(), (made.up.weight.flatten(1) @ made.down.weight.flatten(1)).view_as(layer.weight)
    )


def test_by_outputs_is_the_whitened_decomposition_and_beats_that_of_the_weight():
    torch.manual_seed(0)
    mix = torch.randn(8, 48)
    given = torch.relu(torch.randn(4000, 8) @ mix)
    layer = nn.Linear(48, 32)
    with torch.no_grad():
        outputs = layer(given)
        directions = found(outputs)
        centred = given.double() - given.double().mean(0)
        values, vectors = torch.linalg.eigh(centred.t() @ centred / len(given))
        root = vectors * values.clamp(min=0).sqrt()
        left, energies, _ = torch.linalg.svd(layer.weight.double() @ root, full_matrices=False)
        errors = [(split(layer, one, 6)(given) - outputs).norm() for one in (directions, of_weight(layer))]
    assert torch.allclose(energies.square(), directions.energies, rtol=1e-6, atol=1e-9)
    assert torch.allclose((left[:, :6].t() @ directions.axes[:, :6]).abs(), torch.eye(6).double(), atol=1e-4)
    assert float(errors[0]) < 0.7 * float(errors[1])


def test_the_largest_rank_is_the_last_that_saves():
    for layer in (
        nn.Linear(40, 30),
        nn.Linear(40, 30, bias=False),
        nn.Conv2d(8, 16, 3),
        nn.Linear(64, 2),
        nn.Linear(1, 1),
    ):
        top = largest_rank(layer)
        assert top == 0 or factored_bytes(layer, top) < module_bytes(layer)
        assert top >= min(layer.weight.flatten(1).shape) or factored_bytes(layer, top + 1) >= module_bytes(layer)


def test_ranks_within_a_budget_give_up_the_least():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64) for _ in range(3)]
    falls = [0.5, 0.9, 0.99]
    known = [Directions(fall ** torch.arange(64.0).double(), torch.eye(64).double(), torch.zeros(64)) for fall in falls]
    sites = [Site((str(number),), layer) for number, layer in enumerate(layers)]
    ranks = ranks_within(sites, known, 0.5, "test")
    taken = [module_bytes(a) if r is None else factored_bytes(a, r) for a, r in zip(layers, ranks, strict=True)]
    assert sum(taken) <= 0.5 * sum(map(module_bytes, layers))
    assert ranks[0] < ranks[1]
    equal = [max(1, int((0.5 * module_bytes(layers[0]) / 4 - 64) // 128))] * 3
    lost = [sum(d.lost(r) if r else 0.0 for d, r in zip(known, each, strict=True)) for each in (ranks, equal)]
    assert lost[0] < lost[1]
    with pytest.raises(BudgetError, match="too few"):
        ranks_within(sites, known, 0.001, "test")


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_hosts_that_are_not_ours_are_split(name):
    context = Context()
    made = FeatureMimicking(share=0.6, min_weights=1).apply(host(name), Host(name), context)
    assert sum(isinstance(module, LowRankLinear) for module in made.modules()) >= 4
    assert bool(torch.isfinite(answer(made, inputs(name))).all())


def test_mimicking_brings_outputs_nearer_without_labels():
    task = ShapesTask(ShapesOptions(examples=320))
    task = task.view(settings=dataclasses.replace(task.settings, epochs=4, patience=None))
    torch.manual_seed(0)
    model = task.build()
    task.train(model)
    unlabelled = task.view(loss=lambda model, batch: pytest.fail("labels were used"))
    batch = task.example_batch()[0]
    errors = []
    for epochs in (0, 3):
        made = FeatureMimicking(share=0.06, min_weights=64, mimic_epochs=epochs).apply(
            copy.deepcopy(model), unlabelled, Context()
        )
        assert any(isinstance(module, (LowRankConv, LowRankLinear)) for module in made.modules())
        with torch.no_grad():
            errors.append(float((made.eval()(batch) - model(batch)).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_bad_input_is_one_line():
    with pytest.raises(ValidationError, match="share and rank each choose the ranks"):
        FeatureMimicking(share=0.5, rank=3)
    model = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(NothingMatchedError, match="64 x 64 gets no smaller at rank 40"):
        FeatureMimicking(rank=40, min_weights=1).apply(model, ShapesTask(), Context())
