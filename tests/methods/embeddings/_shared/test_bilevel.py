from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.errors import TaskError
from lessen.methods.embeddings._shared.bilevel import HeldOut, without_side_effects
from lessen.testing.toys import TableTask


def test_held_out_batches_are_never_trained_on_and_come_again():
    task = TableTask()
    held = HeldOut(task, every=4, seed=3)
    training = held.training()
    order = [labels for _, labels in task.batches("train", seed=3)]
    for seed in (1, 2):
        seen = [labels for _, labels in training.batches("train", seed)]
        assert len(seen) == 3
        assert all(torch.equal(a, b) for a, b in zip(seen, order[:3], strict=True))
    for _ in range(3):
        assert torch.equal(held.next()[1], order[3])
    assert len(list(training.batches("validation"))) == 1
    assert "batches" not in vars(task)


def test_a_split_without_enough_batches_is_refused():
    with pytest.raises(TaskError, match="every 5th train batch"):
        HeldOut(TableTask(), every=5, seed=0).next()


def test_the_second_forward_leaves_norms_and_dropout_as_they_were():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with without_side_effects(model):
        out = model(torch.randn(64, 3) + 5)
    assert float(out.detach().std()) == pytest.approx(1, abs=0.05)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model[0].track_running_stats
    assert model[1].training
