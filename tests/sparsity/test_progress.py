"""Schedules of progressive training and the masks that follow them: closed forms, both gradients, and resumption."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lessen.sparsity.hooks import Schedule
from lessen.sparsity.masking import Fading, Fixed, Pulled, mask_of, masked
from lessen.sparsity.pattern import Pattern
from lessen.sparsity.schedules import Progress

EIGHTH = Pattern.parse("1:8")


@pytest.mark.parametrize(
    ("kind", "frames"),
    [
        ("stepwise", ["7:8", "4:8", "2:8", "1:8"]),
        ("geometric", ["8:64", "4:32", "2:16", "1:8"]),
        ("linear", ["1:8"]),
    ],
)
def test_the_frames_are_those_of_the_paper(kind, frames):
    progress = Progress(kind, EIGHTH, 100, dense=0.1, fine=0.1)
    assert [str(frame) for frame in progress.frames] == frames
    seen = [str(progress.pattern_at(step)) for step in range(10, 90)]
    assert list(dict.fromkeys(seen)) == frames
    assert max(seen.count(frame) for frame in frames) - min(seen.count(frame) for frame in frames) <= 1
    assert str(progress.pattern_at(90)) == "1:8"


@pytest.mark.parametrize("text", ["2:4", "1:2", "3:4", "4:16", "1:32", "5:8", "100:250"])
def test_frames_tighten_and_end_at_the_pattern(text):
    pattern = Pattern.parse(text)
    for kind in ("stepwise", "geometric"):
        frames = Progress(kind, pattern, 10).frames
        assert frames[-1] == pattern
        densities = [frame.n / frame.m for frame in frames]
        assert densities == sorted(densities, reverse=True)


def test_decay_is_one_then_falls_then_is_none():
    linear, exponential = (Progress(kind, EIGHTH, 200, 0.25, 0.25) for kind in ("linear", "exponential"))
    for progress in (linear, exponential):
        assert [progress.decay(step) for step in (0, 49, 50)] == [1.0, 1.0, 1.0]
        assert [progress.decay(step) for step in (150, 199)] == [0.0, 0.0]
    assert linear.decay(100) == pytest.approx(0.5)
    assert exponential.decay(100) == pytest.approx(0.1)
    assert Progress("exponential", EIGHTH, 200, rate=0.02).decay(50) == pytest.approx(math.exp(-1))
    assert Progress("linear", EIGHTH, 200, rate=0.02).decay(60) == 0.0
    assert Progress("stepwise", EIGHTH, 200).decay(50) == 0.0


def test_whole_decay_is_dense_bit_for_bit_and_none_is_masked():
    torch.manual_seed(0)
    weight, form = torch.randn(6, 16), Fading(EIGHTH, straight=False).train()
    form.move(1.0, EIGHTH)
    assert torch.equal(form(weight), weight)
    form.move(0.0, EIGHTH)
    assert torch.equal(form(weight), weight * mask_of(weight, EIGHTH))
    form.move(0.7, Pattern.parse("4:8"))
    assert torch.equal(form.eval()(weight), weight * mask_of(weight, EIGHTH))


@pytest.mark.parametrize("shape", [(4, 16), (4, 8, 3, 3)])
def test_gradients_of_both_readings(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    exact = Fading(EIGHTH, straight=False).double().train()
    exact.move(0.3, EIGHTH)
    assert torch.autograd.gradcheck(exact, weight, eps=1e-7)
    straight = Fading(EIGHTH, straight=True).double().train()
    straight.move(0.3, EIGHTH)
    slopes = torch.randn_like(weight)
    (found,) = torch.autograd.grad(straight(weight), weight, slopes)
    assert torch.equal(found, slopes)
    assert torch.allclose(straight(weight), exact(weight), rtol=1e-12)


def test_sr_ste_pulls_what_is_removed():
    torch.manual_seed(0)
    weight = torch.randn(4, 16, requires_grad=True)
    form, slopes, mask = Pulled(EIGHTH, 2e-4), torch.randn(4, 16), mask_of(weight, EIGHTH)
    made = form(weight)
    (found,) = torch.autograd.grad(made, weight, slopes)
    assert torch.equal(made, weight * mask)
    assert torch.equal(found, slopes + 2e-4 * ~mask * weight)


def test_a_resumed_training_stands_where_the_step_says():
    progress = Progress("stepwise", EIGHTH, 40, 0.0, 0.2)
    forms = [Fading(EIGHTH, straight=False) for _ in range(2)]
    hook = Schedule([forms[0]], progress)
    hook.start(nn.Linear(1, 1))
    for step in range(1, 14):
        hook.after_step(nn.Linear(1, 1), step)
    Schedule([forms[1]], progress).after_step(nn.Linear(1, 1), 13)
    assert torch.equal(forms[0].run, forms[1].run)
    assert forms[1].run.tolist() == [4, 8]


def test_masks_are_taken_off_whatever_happens():
    layer = nn.Linear(8, 4)
    before, kind = layer.weight.detach().clone(), type(layer)

    def stopped():
        with masked({layer: Fixed(before > 0)}):
            assert bool((layer.weight[before <= 0] == 0).all())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert type(layer) is kind
    assert torch.equal(layer.weight, before)
    assert isinstance(layer.weight, nn.Parameter)
