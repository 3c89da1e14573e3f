"""State belongs to the call: threads, recomputation in the backward pass, copies, calls that failed halfway."""

from __future__ import annotations

import copy
import sys
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lessen.errors import InputError
from lessen.tokens import Keep, Merge, RankMerge, reduce_tokens
from lessen.tokens.calls import Calls
from lessen.tokens.state import TokenState
from towers import IMAGES, TimmStyleViT, build, output

REDUCERS = {
    "merge": Merge(removed=(6,) * 4),
    "fuse": Keep(rates=(1.0, 0.7, 1.0, 0.7), proportional=True),
    "tail": RankMerge(pruned=(60, 50, 40, 30), merged=(55, 45, 36, 27), matching="tail"),
    "pairs": RankMerge(pruned=(60, 50, 40, 30), merged=(55, 45, 36, 27), matching="pairs"),
}


@pytest.mark.parametrize("name", ["plain", "vit-classifier", "timm"])
def test_threads_do_not_mix(name):
    """The interpreter is made to switch between every few instructions; batches differ in size, then in content."""
    model = build(name)
    reduce_tokens(model, REDUCERS["tail"] if name == "plain" else REDUCERS["merge"])
    inputs = [IMAGES[:1], IMAGES[1:2], IMAGES]
    wanted = [output(model, images) for images in inputs]
    wrong: list[object] = []

    def serve(number):
        try:
            for _ in range(15):
                got = output(model, inputs[number])
                if not torch.allclose(got, wanted[number], atol=1e-5):
                    wrong.append(number)
        except Exception as error:
            wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=serve, args=(number,)) for number in (0, 1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_two_calls_taken_in_turns():
    """One block of each in turn, in one thread: tokens find their own state, whatever ran last."""
    model = build("plain")
    patch = reduce_tokens(model, REDUCERS["merge"])
    with torch.no_grad():
        wanted = [model(IMAGES[:1]), model(IMAGES)]
        streams = [model.embed(IMAGES[:1]), model.embed(IMAGES)]
        for block in model.blocks:
            streams = [block(x) for x in streams]
        for x, want in zip(streams, wanted, strict=True):
            assert torch.equal(model.head(model.norm(x)[:, 0]), want)
    assert patch.state.count == 41


def gradients(model, forward):
    model.zero_grad()
    forward(model).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", REDUCERS)
@pytest.mark.parametrize("span", [1, 2])
def test_checkpointed_blocks_give_the_same_gradients(span, kind, reentrant):
    torch.manual_seed(0)
    model = TimmStyleViT().train()
    reduce_tokens(model, REDUCERS[kind])

    def run(own, checkpointed):
        x = own.patch_embed(IMAGES).flatten(2).transpose(1, 2)
        x = torch.cat([own.cls_token.expand(len(x), -1, -1), x], 1)
        for first in range(0, 4, span):
            part = own.blocks[first : first + span]
            x = checkpoint(part, x, use_reentrant=reentrant) if checkpointed else part(x)
        return own.head(x[:, 0])

    plain = gradients(model, lambda own: run(own, False))
    again = gradients(model, lambda own: run(own, True))
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[name], again[name], atol=1e-7) for name in plain)


@pytest.mark.parametrize("restore", [False, True])
def test_transformers_checkpointing_stays_on(restore):
    model = build("vit-classifier").train()
    reduce_tokens(model, REDUCERS["merge"], restore=restore)
    runs = []
    model.vit.layers[1].attention.q_proj.register_forward_hook(lambda *_: runs.append(1))
    plain = gradients(model, lambda own: own(IMAGES).logits)
    assert len(runs) == 1
    model.gradient_checkpointing_enable()
    again = gradients(model, lambda own: own(IMAGES).logits)
    assert len(runs) == 3  # forward, and again in the backward pass
    assert all(torch.allclose(plain[name], again[name], atol=1e-7) for name in plain)


@pytest.mark.parametrize("kind", REDUCERS)
def test_a_model_can_be_copied_after_a_training_step(kind):
    model = build("plain").train()
    patch = reduce_tokens(model, REDUCERS[kind])
    model(IMAGES).square().mean().backward()
    assert not patch.state.size.requires_grad
    twin = copy.deepcopy(model)
    assert torch.equal(output(twin), output(model))


def test_a_call_that_failed_leaves_nothing_behind():
    model = build("plain")
    reduce_tokens(model, REDUCERS["merge"])
    wanted = output(model)
    handle = model.blocks[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        output(model)
    handle.remove()
    assert torch.equal(output(model), wanted)


def test_tokens_from_elsewhere_are_refused():
    model = build("plain")
    patch = reduce_tokens(model, REDUCERS["merge"])
    with pytest.raises(InputError, match="block 2 was given tokens that block 1 did not give"):
        model.blocks[2](torch.randn(1, 9, 48))
    assert patch.state.group is None


def test_states_go_with_their_tokens():
    calls = Calls()
    for step in range(50):
        x = torch.zeros(1, 3, 2)
        calls.remember(x, step, TokenState())
    assert len(calls._known) == 1
    assert calls.recall(x.detach(), 50) == TokenState()
    assert copy.deepcopy(calls).newest() is None
