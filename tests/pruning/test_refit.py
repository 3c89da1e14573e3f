"""Refits against least squares, and their place in a model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lessen.errors import NonFiniteError
from lessen.pruning.refit import Sums


@pytest.mark.parametrize("bias", [True, False])
def test_a_refit_is_least_squares(bias):
    torch.manual_seed(0)
    layer = nn.Linear(5, 3, bias=bias)
    inputs, wanted = torch.randn(200, 5), torch.randn(200, 3)
    sums = Sums(layer)
    for rows in torch.arange(200).split(70):
        sums.add(inputs[rows], (wanted - layer(inputs))[rows].detach())
    before = float((wanted - layer(inputs)).square().sum())
    left = sums.refit(1e-12)
    columns = torch.cat([inputs, torch.ones(200, 1)], 1) if bias else inputs
    solved = torch.linalg.lstsq(columns, wanted).solution.t()
    assert torch.allclose(layer.weight, solved[:, :5], atol=1e-4)
    assert float((wanted - layer(inputs)).square().sum()) / before == pytest.approx(left, rel=1e-3)


def test_a_strong_ridge_leaves_the_weights_and_nothing_missing_changes_nothing():
    layer = nn.Linear(4, 2)
    before = copy.deepcopy(layer.weight.data)
    sums = Sums(layer)
    sums.add(torch.randn(50, 4), torch.randn(50, 2))
    assert sums.refit(1e9) == pytest.approx(1.0, abs=1e-6)
    assert torch.allclose(layer.weight, before, atol=1e-6)
    still = Sums(layer)
    still.add(torch.randn(50, 4), torch.zeros(50, 2))
    assert still.refit(1e-3) == 0.0


def test_bad_calibration_is_refused():
    with pytest.raises(NonFiniteError, match="calibration data gave NaN"):
        Sums(nn.Linear(2, 2)).add(torch.full((3, 2), float("nan")), torch.zeros(3, 2))
