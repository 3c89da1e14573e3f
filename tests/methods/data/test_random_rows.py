"""A random part of the training batches: the share asked for, the same ones in every epoch, and never the judge's."""

from __future__ import annotations

import pytest
import torch

from lessen.method import Context
from lessen.methods.data.random_rows import RandomRows
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask


def test_the_same_share_of_batches_in_every_epoch():
    task = ShapesTask(ShapesOptions(examples=64 * 200))
    fewer = RandomRows(share=0.3).prepare(task, Context(seed=3))
    first, second = ([labels for _, labels in fewer.batches("train", seed=epoch)] for epoch in (0, 7))
    assert len(first) == pytest.approx(60, abs=20)  # of 200 batches: three standard deviations
    assert len(first) == len(second)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    other = RandomRows(share=0.3).prepare(task, Context(seed=4))
    assert len(list(other.batches("train"))) != len(first) or not torch.equal(
        next(iter(other.batches("train")))[1], first[0]
    )
    assert fewer.fingerprint() == task.fingerprint()


def test_a_share_of_one_keeps_all_and_a_tiny_one_keeps_a_batch():
    task = ShapesTask(ShapesOptions(examples=640))
    assert len(list(RandomRows(share=1.0).prepare(task, Context()).batches("train"))) == 10
    assert len(list(RandomRows(share=1e-9).prepare(task, Context()).batches("train"))) == 1
