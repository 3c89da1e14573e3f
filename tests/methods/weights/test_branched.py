"""Branches that merge into one convolution, and the gradient mask that trains one convolution like branches."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lessen.errors import NothingMatchedError
from lessen.method import Context
from lessen.methods.weights._shared.branched import Branches, Scale, centred, identity
from lessen.methods.weights.qarepvgg import QARepVGG
from lessen.methods.weights.rep_optimizer import RepOptimizer, masked, start
from lessen.recipe import Recipe
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask
from lessen.train.settings import FitSettings
from toy import ToyNet, ToyTask


class Plain(nn.Module):
    """Convolutions of equal and of growing size with norms, on [B, 1, 16, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, pictures):
        maps = torch.relu(self.norm(self.first(pictures)))
        return self.head(torch.relu(self.point(torch.relu(self.second(maps)))).mean((2, 3)))


def shapes_task():
    task = ShapesTask(ShapesOptions(examples=128))
    return task.view(settings=FitSettings(epochs=2, learning_rate=1e-2), build=Plain)


def lived(branches):
    """Give norms the statistics and factors of a training."""
    for module in branches.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.2, 2)
            nn.init.uniform_(module.weight, -1, 2)
            nn.init.uniform_(module.bias, -1, 1)
        if isinstance(module, Scale):
            nn.init.uniform_(module.factors, 0.3, 2)
    return branches.double().eval()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=3),
        nn.Conv2d(6, 6, (3, 5), padding=(1, 2), groups=6),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["rep", "qa", "scaled"])
def test_merged_branches_answer_the_same(layer, kind):
    nothing = lambda _channels: nn.Identity()  # noqa: E731
    wide, other = {
        "rep": (nn.BatchNorm2d, nn.BatchNorm2d), "qa": (nn.BatchNorm2d, nothing), "scaled": (Scale, Scale),
    }[kind]  # fmt: skip
    branches = lived(Branches(layer, wide, other, other))
    assert (branches.straight is None) == (layer.in_channels != layer.out_channels)
    maps = torch.randn(2, layer.in_channels, 9, 8, dtype=torch.float64)
    assert torch.allclose(branches.merged()(maps), branches(maps), atol=1e-12)


def test_one_masked_step_is_one_step_of_the_branches():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 2, 3, padding=1, bias=False).double()
    scaled = lived(Branches(layer, Scale, Scale, Scale))
    mask = start(layer, scaled, torch.Generator().manual_seed(3))
    wide, narrow, straight = (s.factors.detach() for s in (scaled.wide_scale, scaled.narrow_scale, scaled.straight))
    torch.manual_seed(1)
    kernel, point = scaled.wide.weight.detach().clone(), scaled.narrow.weight.detach().clone()
    own = straight.clone()  # the input's branch trains too: a factor a channel, behind a constant scale of 1
    each = [one.requires_grad_() for one in (kernel, point, own)]
    with torch.no_grad():
        layer.weight.copy_(
            kernel * wide.view(-1, 1, 1, 1)
            + centred(point * narrow.view(-1, 1, 1, 1), layer)
            + identity(layer) * straight.view(-1, 1, 1, 1)
        )
    maps = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    conv = lambda x, w, pad: nn.functional.conv2d(x, w, padding=pad)  # noqa: E731

    def of_branches():
        answer = conv(maps, kernel, 1) * wide.view(1, -1, 1, 1) + conv(maps, point, 0) * narrow.view(1, -1, 1, 1)
        return (answer + maps * own.view(1, -1, 1, 1)).sin().square().sum()

    gradients = torch.autograd.grad(of_branches(), each)
    stepped = [one.detach() - 0.1 * gradient for one, gradient in zip(each, gradients, strict=True)]
    expected = stepped[0] * wide.view(-1, 1, 1, 1) + centred(stepped[1] * narrow.view(-1, 1, 1, 1), layer)
    expected = expected + identity(layer) * stepped[2].view(-1, 1, 1, 1)
    handles = masked([layer], [mask])
    layer(maps).sin().square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert torch.allclose(layer.weight, expected, atol=1e-12)
    for handle in handles:
        handle.remove()


def test_the_mask_by_hand():
    layer = nn.Conv2d(2, 2, 3, padding=1)
    scaled = Branches(layer, Scale, Scale, Scale)
    with torch.no_grad():
        scaled.wide_scale.factors.copy_(torch.tensor([2.0, 3.0]))
        scaled.narrow_scale.factors.copy_(torch.tensor([0.5, 1.0]))
        scaled.straight.factors.fill_(7.0)  # does not count: the input's branch has a scale of 1
    mask = start(layer, scaled, torch.Generator().manual_seed(0))
    for out, into, row, column in itertools.product(range(2), range(2), range(3), range(3)):
        middle = row == column == 1
        expected = (4.0, 9.0)[out] + middle * ((0.25, 1.0)[out] + (out == into))
        assert float(mask[out, into, row, column]) == pytest.approx(expected)


@pytest.mark.parametrize("method", [QARepVGG(), QARepVGG(norms="each"), RepOptimizer(learning_rate=0.05)], ids=str)
def test_a_trained_network_is_plain_again(method):
    task = shapes_task()
    model = Plain()
    before = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    made, records = Recipe([method]).apply(model, task, seed=1)
    layers = {name: module for name, module in made.named_modules() if isinstance(module, nn.Conv2d)}
    assert layers.keys() == before.keys()
    assert not any(isinstance(module, Branches) for module in made.modules())
    assert all(not module.weight._backward_hooks for module in layers.values())
    assert "is 1 x 1 itself" in records[0].findings["skipped"]["point"]
    assert not torch.equal(layers["second"].weight, before["second"].weight)


def test_a_model_that_no_build_gives_is_trained_on():
    model = Plain()
    model.point.requires_grad_(False)  # a fresh build would train it
    made, records = Recipe([RepOptimizer(epochs=1)]).apply(model, shapes_task(), seed=1)
    assert records[0].findings["start"] == "given model"
    assert type(made.second) is nn.Conv2d
    assert torch.equal(made.point.weight, model.point.weight)
    assert not torch.equal(made.second.weight, model.second.weight)


def test_nothing_to_branch_is_said():
    with pytest.raises(NothingMatchedError, match="Conv2d"):
        QARepVGG().apply(ToyNet(), ToyTask(examples=100), Context())
    even = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Conv2d(1, 2, 3))
    with pytest.raises(NothingMatchedError, match="middle over its own input"):
        RepOptimizer().apply(even, shapes_task(), Context())
