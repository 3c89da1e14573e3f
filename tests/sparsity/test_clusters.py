"""Shared values: k-means against a loop, pinned zeros, exact indices, the slope of a value, and bytes."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from calibrated_hosts import Host
from host_models import answer, host, inputs
from lessen.errors import NothingMatchedError
from lessen.method import Context
from lessen.methods.sites import module_bytes
from lessen.methods.weights.weight_clustering import WeightClustering
from lessen.sparsity.clusters import Shared, clustered
from lessen.stored.linears.clustered import ClusteredConv, ClusteredLinear, ClusteredMatrix
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask
from lessen.testing.toys import TableTask


def test_values_start_equally_spaced_and_end_where_k_means_does():
    torch.manual_seed(0)
    weight = torch.randn(20, 30)
    indices, book = clustered(weight, 8, 0)
    assert torch.allclose(book, torch.linspace(float(weight.min()), float(weight.max()), 8))
    assert torch.equal(book[indices], book[(weight.unsqueeze(-1) - book).abs().argmin(-1)])
    errors = [
        float((clustered(weight, 8, steps)[1][clustered(weight, 8, steps)[0]] - weight).square().sum())
        for steps in (0, 1, 5, 200)
    ]
    assert errors == sorted(errors, reverse=True)
    indices, book = clustered(weight, 8, 1000)
    means = torch.stack([weight[indices == one].mean() for one in range(8)])
    assert torch.allclose(means, book, atol=1e-5)


def test_zeros_stay_and_nothing_joins_them():
    torch.manual_seed(0)
    weight = torch.randn(16, 16) * (torch.rand(16, 16) < 0.5)
    indices, book = clustered(weight, 5, 50)
    assert torch.equal(indices == 0, weight == 0)
    assert float(book[0]) == 0.0
    form = Shared(indices, book)
    form.codebook.data.add_(1.0)
    assert bool((form(weight)[weight == 0] == 0).all())
    assert torch.equal(clustered(torch.zeros(3, 3), 4, 5)[0], torch.zeros(3, 3, dtype=torch.int64))


def test_the_slope_of_a_value_is_the_sum_of_its_members():
    torch.manual_seed(0)
    weight, slopes = torch.randn(6, 9), torch.randn(6, 9)
    indices, book = clustered(weight, 4, 10)
    form = Shared(indices, book)
    form(weight).backward(slopes)
    assert torch.allclose(form.codebook.grad, torch.stack([slopes[indices == one].sum() for one in range(4)]))


@pytest.mark.parametrize("clusters", [2, 5, 16, 17, 256])
def test_packed_indices_are_exact_and_counted(clusters):
    torch.manual_seed(0)
    indices, book = torch.randint(clusters, (13, 11)), torch.randn(clusters)
    made = ClusteredMatrix.of(indices, book, "fp32")
    assert torch.equal(made.dequantise(), book[indices])
    assert module_bytes(made) == math.ceil(143 * math.ceil(math.log2(clusters)) / 8) + 4 * clusters
    made.check()
    if clusters == 5:
        made.indices[0] |= 7
        with pytest.raises(ValueError, match="indices"):
            made.check()


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_hosts_that_are_not_ours_are_clustered(name):
    context = Context()
    made = WeightClustering(clusters=16).apply(host(name), Host(name), context)
    layers = [m for m in made.modules() if isinstance(m, (ClusteredLinear, ClusteredConv))]
    assert len(layers) == len(context.findings["layers"]) >= 8
    assert all(len(layer.dequantise().unique()) <= 16 for layer in layers)
    assert bool(torch.isfinite(answer(made, inputs(name))).all())


def test_values_train_and_removed_weights_stay_away():
    task = ShapesTask(ShapesOptions(examples=320))
    task = task.view(settings=dataclasses.replace(task.settings, epochs=3, patience=None))
    torch.manual_seed(0)
    model = task.build()
    task.train(model)
    scores = []
    for epochs in (0, 3):
        context = Context()
        made = WeightClustering(clusters=3, density=0.5, fine_tune_epochs=epochs).apply(
            copy.deepcopy(model), task, context
        )
        zeros = [layer["zeros"] for layer in context.findings["layers"].values()]
        assert min(zeros) >= 0.49
        scores.append(task.score(made, "validation"))
    assert scores[1] >= scores[0]


def test_what_would_not_be_smaller_stays():
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(NothingMatchedError, match="take no fewer bytes"):
        WeightClustering(clusters=256, min_weights=1).apply(model, TableTask(), Context())
