"""Training towards N:M on small tasks: what is stored, what is judged on the way, and a model that is not ours."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from calibrated_hosts import Host
from host_models import answer, host, inputs
from lessen.errors import NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.weights._shared.nm_trained import steps_of
from lessen.methods.weights.nm_progressive import NMProgressive
from lessen.methods.weights.sr_ste import SRSTE
from lessen.stored.linears.sparse import SparseConv, SparseLinear
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask
from lessen.testing.toys import TableTask

METHODS = {
    **{kind: NMProgressive(pattern="1:8", schedule=kind, min_weights=64) for kind in
       ("linear", "exponential", "stepwise", "geometric")},
    "straight through": NMProgressive(pattern="1:8", straight_through=True, min_weights=64),
    "sr-ste": SRSTE(pattern="1:8", min_weights=64),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_every_run_keeps_one_of_eight_and_the_stored_model_answers_as_it_was_judged(name):
    task, seen = TableTask(), []

    def score(model, split="validation"):
        seen.append(TableTask.score(task, model, split))
        return seen[-1]

    torch.manual_seed(0)
    model, context = task.build(), Context()
    task = task.view(score=score)
    made = METHODS[name].apply(model, task, context)
    for layer in (made.first, made.second):
        assert isinstance(layer, SparseLinear)
        assert bool(((layer.dequantise().view(-1, 8) != 0).sum(1) <= 1).all())
    assert context.findings["trained"]["epochs"] == 2
    assert context.findings["density"]["of the sparse layers"] == 0.125
    best = max(seen)
    assert task.score(made, "validation") == pytest.approx(best, abs=1e-6)


def test_a_transformer_of_hugging_face_and_a_network_of_convolutions_train():
    class Short(Host):
        provides = frozenset({"training", "gradients", "calibration"})
        settings = dataclasses.replace(Host.settings, epochs=1, steps=2, patience=None)

        def score(self, model, split="validation"):
            return 0.0

    made = NMProgressive(pattern="2:4", min_weights=1).apply(host("vit"), Short("vit"), Context())
    assert sum(isinstance(module, SparseLinear) for module in made.modules()) >= 12
    assert bool(torch.isfinite(answer(made, inputs("vit"))).all())
    task = ShapesTask(ShapesOptions(examples=160))
    task = task.view(settings=dataclasses.replace(task.settings, epochs=1))
    made = SRSTE(pattern="2:4", min_weights=64).apply(task.build(), task, Context())
    assert any(isinstance(module, SparseConv) for module in made.modules())


def test_steps_are_those_that_are_taken():
    task = TableTask()
    batches = len(list(task.batches("train")))
    assert steps_of(task, 5) == 5 * batches
    assert steps_of(task, None) == 2 * batches
    accumulated = task.view(settings=dataclasses.replace(task.settings, accumulate=3))
    assert steps_of(accumulated, 1) == -(-batches // 3)
    assert steps_of(task.view(settings=dataclasses.replace(task.settings, steps=7)), 3) == 7
    with pytest.raises(TaskError, match="empty train split"):
        steps_of(task.view(batches=lambda split, seed=0: ()), 1)


def test_bad_patterns_are_said():
    with pytest.raises(ValidationError, match="1 <= N < M"):
        NMProgressive(pattern="4:4")
    model = nn.Sequential(nn.Linear(30, 64))
    with pytest.raises(NothingMatchedError, match="30 inputs are no multiple of 16"):
        SRSTE(pattern="1:16", min_weights=1).apply(model, TableTask(), Context())
