"""The byte Transformer: causal, exact sums over documents, and better than bytes alone after seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from lessen.measure.record import measure_quality
from lessen.methods.weights.half import HalfLinears
from lessen.recipe import Recipe
from lessen.tasks.language.manual import ManualOptions, ManualTask


@pytest.fixture(scope="module")
def task():
    return ManualTask(ManualOptions(documents=3, steps=50, width=32))


def test_a_byte_sees_none_after_it(task):
    torch.manual_seed(0)
    model = task.build().eval()
    ids = torch.randint(256, (1, 20))
    changed = ids.clone()
    changed[0, 12:] = 7
    assert torch.equal(model(ids)[:, :12], model(changed)[:, :12])


def test_sums_are_those_of_each_document(task):
    torch.manual_seed(0)
    model = task.build().eval()
    outcomes = task.outcomes(model)
    text = task.texts("test")[1]
    raw = torch.tensor(list(text.encode()))
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(raw) - 1, 128):
            piece = raw[start : start + 129]
            total += float(functional.cross_entropy(model(piece[None, :-1])[0], piece[1:], reduction="sum"))
    assert outcomes["nll"][1] == pytest.approx(total, rel=1e-5)
    assert outcomes["tokens"][1] == outcomes["bytes"][1] == len(raw) - 1


def test_it_learns_more_than_the_frequency_of_bytes(task):
    reference = task.reference(0)
    found = measure_quality(task, reference).values
    counts = np.bincount(np.frombuffer("\n".join(task.texts("train")).encode(), np.uint8), minlength=256) + 1
    test = np.frombuffer("".join(task.texts("test")).encode(), np.uint8)
    frequency = -np.log2(counts / counts.sum())[test].mean()
    assert found["bits per byte"] < frequency
    assert not set(task.texts("train")) & set(task.texts("test"))
    half, _ = Recipe([HalfLinears()]).apply(reference, task)
    assert measure_quality(task, half).values["perplexity"] == pytest.approx(found["perplexity"], rel=0.01)
