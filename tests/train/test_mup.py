"""muP: roles, starts and rates by width, and the sharpness of a quadratic."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lessen.errors import ConfigError
from lessen.train.mup import groups, rescale, roles, sharpness


def net(width: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 4)
    )


def test_at_the_base_width_nothing_changes() -> None:
    model, base = net(16), net(16)
    before = copy.deepcopy(model.state_dict())
    rescale(model, base)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (only,) = groups(model, base)
    assert only.factor == 1.0
    assert len(only.parameters) == len(list(model.parameters()))


def test_the_roles_and_rates_of_a_wider_model() -> None:
    model, base = net(64), net(16)
    assert roles(model, base) == {
        "0.weight": ("vector", 4.0), "0.bias": ("vector", 4.0), "2.weight": ("matrix", 4.0), "2.bias": ("vector", 4.0),
        "3.weight": ("vector", 4.0), "3.bias": ("vector", 4.0), "5.weight": ("readout", 4.0), "5.bias": ("fixed", 1.0),
    }  # fmt: skip
    slow, usual = groups(model, base)
    assert (slow.factor, usual.factor) == (0.25, 1.0)
    assert {id(p) for p in slow.parameters} == {id(model[2].weight), id(model[5].weight)}  # type: ignore[index]
    before = copy.deepcopy(model)
    rescale(model, base)
    assert torch.allclose(model[5].weight, before[5].weight / 2)  # type: ignore[index]
    assert torch.allclose(model[2].bias, before[2].bias * 2)  # type: ignore[index]
    assert torch.allclose(model[5].bias, before[5].bias * 2)  # type: ignore[index]
    assert torch.equal(model[2].weight, before[2].weight)  # type: ignore[index]
    with pytest.raises(ConfigError, match="this model was rescaled already"):
        rescale(model, base)
    conv = nn.Conv2d(16, 32, 3)
    assert roles(conv, nn.Conv2d(4, 8, 3))["weight"] == ("matrix", 4.0)


def test_other_models_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"muP: 0\.bias is in one of the two models only"):
        roles(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2, bias=False)))
    odd = nn.Linear(2, 2)
    odd.weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigError, match="muP: weight has 2 axes, in the base 1"):
        roles(nn.Linear(2, 2), odd)


def drift(width: int, scaled: bool) -> float:
    """Return how far outputs move in three steps of Adam at one rate."""
    model, base = net(width), net(32)
    if scaled:
        rescale(model, base)
    found = groups(model, base) if scaled else [None]
    parameters = [
        {"params": list(one.parameters), "lr": 1e-2 * one.factor} if one else {"params": list(model.parameters())}
        for one in found
    ]
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 8, generator=generator), torch.randint(0, 4, (64,), generator=generator)
    first = model(x).detach()
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return float((model(x).detach() - first).abs().mean())


def test_outputs_move_alike_at_every_width_and_only_so() -> None:
    widths = (64, 256, 1024)
    slopes = {}
    for scaled in (True, False):
        sizes = [math.log2(drift(width, scaled)) for width in widths]
        slopes[scaled] = (sizes[-1] - sizes[0]) / math.log2(widths[-1] / widths[0])
    assert abs(slopes[True]) < 0.15
    assert slopes[False] > 0.3


def test_the_sharpness_of_a_quadratic_is_its_largest_eigenvalue() -> None:
    matrix = torch.diag(torch.tensor([5.0, 2.0, 1.0]))
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    matrix = turn @ matrix @ turn.T
    point = nn.Parameter(torch.ones(3))
    found = sharpness(lambda: point @ matrix @ point / 2, [point], torch.Generator().manual_seed(0), steps=50)
    assert found == pytest.approx(5.0, rel=1e-4)
    flat = nn.Parameter(torch.ones(2))
    assert sharpness(lambda: flat.square().sum() * 0, [flat], torch.Generator().manual_seed(0)) == 0.0
