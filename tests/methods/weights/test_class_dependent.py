"""Pruning under a loss that protects a class: exact counts, rewinding, selection, and a class that is absent."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from lessen.errors import TaskError
from lessen.method import Context
from lessen.methods.weights.class_dependent import ClassDependent, fewer
from lessen.stored.linears.sparse import SparseConv, SparseLinear
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask
from lessen.testing.toys import TableTask


def test_fewer_keeps_the_highest_of_what_is_left():
    torch.manual_seed(0)
    mask, scores = torch.ones(7, 11, dtype=torch.bool), torch.randn(7, 11)
    left = 77
    for _ in range(4):
        made = fewer(mask, scores, 0.5)
        assert bool((made <= mask).all())
        left -= int(left * 0.5)
        assert int(made.sum()) == left
        assert float(scores[made].min()) >= float(scores[mask & ~made].max())
        mask = made
    single = torch.tensor([[True, False]])
    assert torch.equal(fewer(single, torch.zeros(1, 2), 0.9), single)


def shapes(**settings):
    task = ShapesTask(ShapesOptions(examples=160))
    return task.view(settings=dataclasses.replace(task.settings, epochs=1, **settings))


def test_rounds_start_from_the_given_weights_and_what_is_removed_stays_zero():
    task = shapes(optimizer="sgd", weight_decay=0.1, learning_rate=0.0)
    torch.manual_seed(0)
    model = task.build()
    before = {path: m.weight.detach().clone() for path, m in model.named_modules() if hasattr(m, "weight")}
    context = Context()
    made = ClassDependent(protected=2, rounds=3, min_weights=64).apply(model, task, context)
    layers = {path: m for path, m in made.named_modules() if isinstance(m, (SparseConv, SparseLinear))}
    assert set(layers) == {"wide", "deep", "hidden", "head"} - set(context.findings.get("skipped", {}))
    for path, layer in layers.items():  # nothing learned: survivors are the given weights, bit for bit
        weight, left = layer.dequantise(), before[path]
        assert torch.equal(weight[weight != 0], left[weight != 0])
        size = left.numel()
        for _ in range(3):
            size -= int(size * 0.5)
        assert len(layer.matrix.values) == size
    densities = [one["density"] for one in context.findings["rounds"]]
    assert densities == sorted(densities, reverse=True)
    assert len(densities) == 4


def test_a_heavier_class_is_missed_less():
    task = shapes()
    task = task.view(settings=dataclasses.replace(task.settings, epochs=3, patience=None))
    torch.manual_seed(0)
    model = task.build()
    task.train(model)
    found = []
    for weight in (1.0, 30.0):
        context = Context()
        method = ClassDependent(protected=2, class_weight=weight, rank_weight=1.0, rounds=1, min_weights=64)
        method.apply(copy.deepcopy(model), task, context)
        found.append(context.findings["rounds"][-1])
    assert found[1]["false_negatives"] <= found[0]["false_negatives"]
    assert found[1]["false_positives"] > found[0]["false_positives"]


def test_the_sparsest_round_within_the_slack_is_kept():
    task = shapes()
    torch.manual_seed(0)
    context = Context()
    made = ClassDependent(protected=2, rounds=3, slack=10.0, min_weights=64, epochs=1).apply(
        task.build(), task, context
    )
    kept = sum(len(m.matrix.values) for m in made.modules() if isinstance(m, SparseConv | SparseLinear))
    total = sum(m.matrix.rows * m.matrix.columns for m in made.modules() if isinstance(m, SparseConv | SparseLinear))
    rounds, allowed = context.findings["rounds"], 11 * context.findings["rounds"][0]["false_negatives"]
    within = [one for one in rounds[2:] if one["false_negatives"] <= allowed]
    assert kept / total == pytest.approx((within[-1] if within else rounds[1])["density"], abs=2e-3)


def test_a_class_that_is_absent_is_one_line():
    for task, protected, held in ((shapes(), 9, "0, 1, 2, 3"), (TableTask(), 2, "0, 1")):
        with pytest.raises(TaskError, match=f"no row of the protected class {protected}, only {held}; set protected"):
            ClassDependent(protected=protected, min_weights=1).apply(task.build(), task, Context())
