"""SwinBERT's gates: what is open, where gradients live, what a penalty does, and keys gathered for blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lessen.architectures.flops import CPU_ATTENTION_FLOPS
from lessen.errors import InputError
from lessen.tokens.visual.gates import SHUT, VideoGates, gathered_attention, gathered_macs


def gates(tokens=6, mode="log"):
    torch.manual_seed(0)
    return VideoGates(tokens, mode)


def test_text_is_causal_and_video_never_sees_it():
    made = gates().bias(text=3).detach()
    weights = (torch.zeros(9, 9) + made).double().softmax(1)
    assert torch.equal(weights[:3, :3] > 0, torch.ones(3, 3, dtype=torch.bool).tril())
    assert bool((weights[:3, 3:] > 0).all())
    assert not weights[3:, :3].any()
    assert torch.equal(made[3:, 3:].diagonal(), torch.zeros(6))


def test_the_log_mode_weighs_attention_by_the_gate_in_double_precision():
    made, scores = gates(), torch.randn(6, 6, dtype=torch.float64)
    open_ = made.open().double()
    wanted = scores.exp() * open_ / (scores.exp() * open_).sum(1, keepdim=True)
    assert torch.allclose((scores + made.bias().double()).softmax(1), wanted, atol=1e-5)


def test_only_the_log_mode_teaches_half_open_gates():
    scores, reward = torch.randn(6, 6), torch.randn(6, 6)
    for mode, learns in (("paper", False), ("log", True)):
        made = gates(mode=mode)
        torch.nn.init.zeros_(made.weight_of_gates)
        ((scores + made.bias()).softmax(1) * reward).sum().backward()
        assert bool(made.weight_of_gates.grad.any()) == learns


def test_a_hard_mask_is_the_thresholded_one_and_a_strong_penalty_leaves_the_diagonal():
    made = gates()
    assert torch.equal(made.pattern(), made.weight_of_gates.sigmoid().ge(0.5) | torch.eye(6, dtype=torch.bool))
    assert torch.equal(made.bias(hard=True) == SHUT, ~made.pattern())
    with torch.no_grad():
        assert float(made.penalty()) == pytest.approx(float((made.open() * (1 - torch.eye(6))).sum()) / 36)
    step = torch.optim.SGD(made.parameters(), 200.0)
    for _ in range(200):
        step.zero_grad()
        made.penalty().backward()
        step.step()
    assert made.density() == pytest.approx(1 / 6)


def test_gates_learn_which_frames_matter():
    """Eight frames, six of them copies of noise; the answer is in frames 2 and 5, read from a class token's row."""
    draw = torch.Generator().manual_seed(1)
    made = gates(9)
    values = torch.nn.Linear(8, 2)
    step = torch.optim.Adam([*made.parameters(), *values.parameters()], 0.05)
    for _ in range(150):
        target = torch.randint(0, 2, (64,), generator=draw)
        frames = 0.5 * torch.randn(64, 1, 8, generator=draw).repeat(1, 9, 1)
        frames[:, [2, 5], 0] += 2.0 * target[:, None] - 1
        seen = made.bias()[8].softmax(0) @ frames
        loss = F.cross_entropy(values(seen), target) + 2.0 * made.penalty()
        step.zero_grad()
        loss.backward()
        step.step()
    row = made.open()[8, :8].detach()
    assert set(row.topk(2).indices.tolist()) == {2, 5}
    assert float((values(made.bias()[8].softmax(0) @ frames).argmax(1) == target).float().mean()) > 0.9
    assert made.density() < 0.3


def test_expanded_gates_stand_on_the_diagonal():
    made = gates(3)
    wide = made.expanded(7)
    for place in (0, 3):
        assert torch.equal(wide.weight_of_gates[place : place + 3, place : place + 3], made.weight_of_gates)
    assert torch.equal(made.expanded(2).weight_of_gates, made.weight_of_gates[:2, :2])


@pytest.mark.parametrize("block", [1, 2, 5])
def test_gathered_keys_equal_the_dense_mask_and_are_counted(block):
    torch.manual_seed(2)
    query, key, value = (torch.randn(2, 3, 10, 4) for _ in range(3))
    pattern = torch.block_diag(*[torch.ones(2, 2)] * 5).bool()
    pattern[3, 8] = True
    wanted = F.scaled_dot_product_attention(query, key, value, pattern)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION_FLOPS) as counter:
        made = gathered_attention(query, key, value, pattern, block)
    assert torch.allclose(made, wanted, atol=1e-6)
    assert counter.get_total_flops() // 2 == 2 * gathered_macs(pattern, 12, block)


def test_it_is_stored_and_misuse_is_one_line():
    made = gates(mode="paper")
    twin = VideoGates.from_config(made.config())
    twin.load_state_dict(made.state_dict())
    assert torch.equal(twin.bias(2), made.bias(2))
    for bad in (lambda: VideoGates(0), lambda: VideoGates(3, "soft")):
        with pytest.raises(InputError):
            bad()
