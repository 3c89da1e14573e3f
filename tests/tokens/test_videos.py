"""A tower that reads videos: tubes of patches are tokens, and nothing else is."""

from __future__ import annotations

import torch

from lessen.tokens import Merge, reduce_tokens
from towers import build, output

VIDEOS = torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(3))
TUBES = 8 // 2 * (32 // 8) ** 2


def test_nothing_merged_is_equal_and_merged_tubes_are_fewer():
    model = build("videomae")
    plain = output(model, VIDEOS)
    patch = reduce_tokens(model, Merge(removed=(0,) * 4))
    assert torch.equal(output(model, VIDEOS), plain)
    patch.remove()
    patch = reduce_tokens(model, Merge(removed=(6,) * 4))
    merged = output(model, VIDEOS)
    assert patch.state.count == TUBES - 24
    assert merged.shape == plain.shape
    assert float((merged - plain).abs().max()) > 0
    patch.remove()
    assert torch.equal(output(model, VIDEOS), plain)


def test_gradients_reach_the_first_layer():
    model = build("videomae").train()
    reduce_tokens(model, Merge(removed=(6,) * 4))
    model(VIDEOS).logits.square().sum().backward()
    assert model.videomae.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0
