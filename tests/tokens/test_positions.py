"""Rotary positions: a merged token stands at the mean of its members, and keys are compared as attention turns them."""

from __future__ import annotations

import math

import pytest
import torch

from lessen.architectures.tower_block import TowerBlock, turn
from lessen.architectures.vit import find_tower
from lessen.errors import InputError
from lessen.tokens import Keep, Merge, reduce_tokens
from lessen.tokens.attentive import AttentionMap
from lessen.tokens.reducers import Signals
from lessen.tokens.rows import Plan
from lessen.tokens.state import moved
from towers import IMAGES, build, output


def at(*angles):
    angle = torch.tensor(angles)[:, None].repeat(1, 4)
    return angle.cos(), angle.sin()


def test_a_merged_token_stands_between_its_members():
    plan = Plan(torch.tensor([[0, 1, 1, 2, 2, 3]]), 4)  # one leading token, then pairs
    cosine, sine = moved(at(0.2, 0.6, 1.0, 1.0 + math.pi, 2.0), plan, torch.tensor([[1.0, 3, 1, 1, 1, 1]]), 1)
    assert torch.allclose(cosine.square() + sine.square(), torch.ones(1, 1, 3, 4), atol=1e-6)
    angle = torch.atan2(sine, cosine)[0, 0, :, 0]
    between = math.atan2(3 * math.sin(0.2) + math.sin(0.6), 3 * math.cos(0.2) + math.cos(0.6))
    assert angle.tolist() == pytest.approx([between, 1.0, 2.0], abs=1e-5)  # opposites: where the first one stands


def test_dropped_tokens_take_their_positions_with_them():
    cosine, sine = moved(at(0.1, 0.2, 0.3), Plan(torch.tensor([[0, -1, 1, 2], [0, 1, -1, 2]]), 3, drops=True), None, 1)
    assert torch.allclose(torch.atan2(sine, cosine)[:, 0, :, 0], torch.tensor([[0.2, 0.3], [0.1, 0.3]]))


@pytest.mark.parametrize("name", ["dinov3", "dinov3-gated"])
def test_class_attention_is_that_of_the_host(name):
    """The score of EViT is the class row of the attention that the host itself computes, rotations included."""
    model = build(name)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        given = model(IMAGES, output_attentions=True)
        tower = find_tower(model)
        parts = TowerBlock(tower.blocks[0], tower.family)
        parts.attach()
        x, positions = model.embeddings(IMAGES), model.rope_embeddings(IMAGES)
        parts.attend(parts.norm1(x), None, positions)
        signals = Signals(parts, x, None, 0, positions)
    assert torch.allclose(signals.score("class_attention", 0), given.attentions[0].mean(1)[:, 0], atol=1e-6)
    assert torch.allclose(signals.score("received_attention", 0), given.attentions[0].mean((1, 2)), atol=1e-6)


def test_turning_leaves_leading_tokens_and_lengths_alone():
    x = torch.randn(2, 6, 3, 8)
    angle = torch.rand(4, 4).repeat(1, 2)
    turned = turn(x, (angle.cos(), angle.sin()))
    assert torch.equal(turned[:, :2], x[:, :2])
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize(
    "reducer",
    [Merge(removed=(8,) * 4), Merge(removed=(8,) * 4, metric="random"), Keep(rates=(1.0, 0.7, 0.7, 1.0))],
    ids=["merge", "random", "keep"],
)
def test_a_rotary_tower_runs_reduced_on_any_picture(reducer, restore):
    model = build("dinov3")
    before = output(model)
    patch = reduce_tokens(model, reducer, restore=restore)
    after = output(model)
    assert torch.isfinite(after).all()
    group = patch.state.group
    assert group[:, :5].tolist() == [[0, 1, 2, 3, 4]] * 3
    wide = output(model, torch.randn(1, 3, 64, 96))  # positions are those of the picture
    assert wide.shape[1] == (101 if restore else patch.state.count)
    patch.remove()
    assert torch.equal(output(model), before)


def test_a_flat_reduction_of_equal_tokens_changes_nothing():
    """Patches of one colour at one position merge without a trace; the positions must be carried for that."""
    model = build("dinov3")
    with torch.no_grad():
        model.rope_embeddings.inv_freq.zero_()  # every patch stands at the same place
        images = torch.ones(2, 3, 64, 64)
        before = model(images).pooler_output
        reduce_tokens(model, Merge(removed=(8,) * 4))
        assert torch.allclose(model(images).pooler_output, before, atol=1e-5)


def test_what_positions_forbid_is_refused():
    with pytest.raises(InputError, match="handed the positions of all of them"):
        AttentionMap(build("dinov3"))
