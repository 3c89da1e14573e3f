"""Convolutions and their norms, seen in a pass and not guessed from the order of definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.architectures.cnn import find_convolutions
from lessen.errors import InputError, NothingMatchedError

PICTURES = torch.randn(2, 3, 16, 16)


class Net(nn.Module):
    """Defined out of order; one norm is shared by two branches, one convolution is read twice, one is called twice."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.deep_norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 1)
        self.twice_norm = nn.BatchNorm2d(8)
        self.both = nn.Conv2d(8, 8, 1)
        self.both_norm, self.act = nn.BatchNorm2d(8), nn.ReLU()
        self.unused = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = self.deep_norm(self.deep(x))
        x = self.twice_norm(self.twice(self.twice(x)))
        y = self.both(x)
        return self.both_norm(y) + self.act(y)


def found(model, pictures=PICTURES):
    return {one.part.path: one for one in find_convolutions(model, lambda net: net(pictures))}


def test_pairs_stages_and_kinds():
    one = found(Net())
    assert list(one) == ["stem", "deep", "twice", "both"]
    assert {path: conv.norm.path if conv.norm else None for path, conv in one.items()} == {
        "stem": "norm",
        "deep": "deep_norm",
        "twice": None,
        "both": None,
    }
    assert [conv.stage for conv in one.values()] == [0, 1, 1, 1]
    assert [conv.depthwise for conv in one.values()] == [False, True, False, False]
    assert one["twice"].calls == 2


def test_a_pair_can_be_folded_into_one_convolution():
    """What pairs are for: the norm's statistics folded into the convolution give the same outputs."""
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    model.eval()
    before = model(PICTURES)
    for conv in found(model).values():
        if conv.norm is not None:
            folded = nn.utils.fusion.fuse_conv_bn_eval(conv.part.module.eval(), conv.norm.module.eval())
            model.set_submodule(conv.part.path, folded)
            model.set_submodule(conv.norm.path, nn.Identity())
    assert torch.allclose(model(PICTURES), before, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model = Net().train()
    found(model)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert int(model.norm.num_batches_tracked) == 0


def test_resnets_of_a_library_pair_every_convolution():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
    model = transformers.ResNetModel(config)
    pairs = found(model, torch.randn(1, 3, 32, 32)).values()
    assert len(pairs) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert all(conv.norm is not None for conv in pairs)


def test_other_models_are_refused_by_what_they_hold():
    with pytest.raises(NothingMatchedError, match="no convolution: Sequential holds Linear"):
        find_convolutions(nn.Sequential(nn.Linear(2, 2)), lambda model: model)
    with pytest.raises(InputError, match="calls none of its convolutions"):
        find_convolutions(nn.Sequential(nn.Conv2d(1, 1, 1)), lambda model: None)
