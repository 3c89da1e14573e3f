"""A model that works already stays as it was where training makes it no better."""

from __future__ import annotations

import dataclasses

import torch

from lessen.method import Context
from lessen.methods import retrain
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask


def shapes():
    torch.manual_seed(0)
    task = ShapesTask(ShapesOptions(examples=400))
    return task, task.build()


def test_a_training_that_helps_stays_and_a_harmful_one_is_taken_back():
    task, model = shapes()
    untrained, context = task.score(model, "validation"), Context(seed=0)
    retrain.fine_tune(model, task, context, epochs=6)
    score = task.score(model, "validation")
    assert score > untrained + 0.2
    assert context.findings["trained"]["best_epoch"] >= 1

    before = {name: value.clone() for name, value in model.state_dict().items()}
    harmful = task.view(settings=dataclasses.replace(task.settings, learning_rate=30.0))
    retrain.fine_tune(model, harmful, context, epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert context.findings["trained"]["best_epoch"] == 0
    assert task.score(model, "validation") == score
    assert not model.training


def test_where_the_last_weights_are_asked_for_the_start_is_no_candidate():
    task, model = shapes()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    last = task.view(settings=dataclasses.replace(task.settings, learning_rate=30.0, keep="last", patience=None))
    retrain.fine_tune(model, last, Context(seed=0), epochs=1)
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
