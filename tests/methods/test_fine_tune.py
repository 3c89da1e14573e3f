"""A model that works already stays as it was where training makes it no better."""

from __future__ import annotations

import dataclasses

import torch

from lessen.method import Context
from lessen.methods import retrain
from lessen.testing.toys import TableTask


def trained(rate):
    task = TableTask()
    model = task.reference(seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    context = Context(seed=0)
    settings = dataclasses.replace(task.settings, learning_rate=rate)
    score = task.score(model, "validation")
    retrain.fine_tune(model, task.view(settings=settings), context, epochs=2)
    return task, model, before, score, context


def test_a_harmful_training_is_taken_back():
    task, model, before, score, context = trained(rate=30.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert context.findings["trained"]["best_epoch"] == 0
    assert task.score(model, "validation") == score
    assert not model.training


def test_a_training_that_helps_stays():
    task = TableTask()
    model = task.build()
    before = task.score(model, "validation")
    context = Context(seed=0)
    retrain.fine_tune(model, task, context, epochs=2)
    assert task.score(model, "validation") > before
    assert context.findings["trained"]["best_epoch"] >= 1
