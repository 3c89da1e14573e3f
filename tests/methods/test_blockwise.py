"""A walk gives what the whole model gives, calls each block once a batch, and leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from host_models import ALL, answer, host, inputs
from lessen.architectures.find import find_parts
from lessen.errors import InputError, TaskError
from lessen.methods.blockwise import walk


def forward_of(model):
    return lambda batch: model(**batch)


def stacks_of(model):
    return list(find_parts(model).stacks.values())


@pytest.mark.parametrize("name", ALL)
def test_outputs_equal_the_whole_models_bit_for_bit_and_each_block_runs_once_a_batch(name):
    model = host(name)
    batches = [inputs(name, seed=seed) for seed in range(3)]
    expected = [answer(model, batch) for batch in batches]
    calls: dict[str, int] = {}
    stacks = stacks_of(model)
    counting = [
        block.module.register_forward_hook(lambda *_, p=block.path: calls.update({p: calls.get(p, 0) + 1}))
        for stack in stacks
        for block in stack.blocks
    ]
    outputs: dict[int, torch.Tensor] = {}

    def keep(number, output):
        outputs[number] = next(
            output[k] for k in ("logits", "logits_per_image", "last_hidden_state") if output.get(k) is not None
        )

    visited = [step.block.path for step in walk(model, stacks, batches, forward_of(model), keep)]
    for handle in counting:
        handle.remove()
    assert sorted(visited) == sorted(block.path for stack in stacks for block in stack.blocks)
    assert set(calls.values()) == {3}
    assert all(torch.equal(outputs[n], expected[n]) for n in range(3))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gemma3", "bert", "t5", "whisper", "dinov2", "clip"])
def test_running_a_step_gives_what_the_block_gives(name):
    model, batch = host(name), inputs(name)
    seen: dict[str, torch.Tensor] = {}
    stacks = stacks_of(model)
    handles = [
        block.module.register_forward_hook(
            lambda m, a, out, p=block.path: seen.update({p: out[0] if isinstance(out, tuple) else out})
        )
        for stack in stacks
        for block in stack.blocks
    ]
    answer(model, batch)
    for handle in handles:
        handle.remove()
    for step in walk(model, stacks, [batch], forward_of(model)):
        with torch.no_grad():
            twice = [step.run(0) for _ in range(2)]
        for output in twice:
            assert torch.equal(output[0] if isinstance(output, tuple) else output, seen[step.block.path])
        assert step.calls[0].hidden.shape[-1] == 32


def test_blocks_run_in_the_callers_thread_and_keep_a_forward_of_their_own():
    """Each thread's allocator would keep a block's scratch memory: with a thread a batch, that adds up."""
    model, here, seen = host("llama"), threading.get_ident(), []
    block = model.model.layers[1]
    plain = block.forward

    def forward(*arguments, **keywords):
        seen.append(threading.get_ident())
        return plain(*arguments, **keywords)

    block.forward = forward
    batches = [inputs("llama", seed=seed) for seed in range(3)]
    for step in walk(model, stacks_of(model), batches, forward_of(model)):
        step.run(0)
    assert seen == [here] * 4
    assert block.forward is forward
    assert "forward" not in vars(model.model.layers[0])


def test_gradients_reach_the_block_that_is_worked_on():
    model, batch = host("llama"), inputs("llama")
    for step in walk(model, stacks_of(model), [batch], forward_of(model)):
        output = step.run(0)
        output.square().mean().backward()
        weight = step.block.feed_forward.down.module.weight
        assert weight.grad is not None
        assert step.calls[0].hidden.grad_fn is None


def test_later_blocks_see_what_was_changed():
    model, batch = host("llama"), inputs("llama")
    changed = host("llama")
    changed.model.layers[0].mlp.down_proj.weight.data.zero_()
    results = {}
    for step in walk(
        model, stacks_of(model), [batch], forward_of(model), lambda n, out: results.update({n: out.logits})
    ):
        if step.block.index == 0:
            step.block.module.mlp.down_proj.weight.data.zero_()
            step.advance()
            assert step.calls == []
    assert torch.equal(results[0], answer(changed, batch))


def test_no_logits_are_made_and_activations_are_all_that_is_held():
    model = host("llama")
    batches = [inputs("llama", seed=seed) for seed in range(4)]
    heads = []
    model.lm_head.register_forward_hook(lambda *_: heads.append(1))
    hidden: list[weakref.ref] = []
    alive: list[int] = []
    for step in walk(model, stacks_of(model), batches, forward_of(model)):
        hidden += [weakref.ref(call.hidden) for call in step.calls]
        gc.collect()
        alive.append(sum(ref() is not None for ref in hidden))
    assert len(heads) == 1  # of the first batch, which shows that no block is called again
    assert alive == [4, 8]  # the host keeps its embeddings until it returns
    del step
    gc.collect()
    assert not any(ref() is not None for ref in hidden)


def test_what_is_held_does_not_grow_with_depth():
    model = host("llama", num_hidden_layers=6)
    hidden: list[weakref.ref] = []
    for step in walk(model, stacks_of(model), [inputs("llama")] * 2, forward_of(model)):
        hidden += [weakref.ref(call.hidden) for call in step.calls]
        gc.collect()
        assert sum(ref() is not None for ref in hidden) <= 4
    assert len(hidden) == 12


def test_an_abandoned_walk_leaves_no_thread_hook_or_mode():
    model = host("gpt2").train()
    before = threading.active_count()
    for _step in walk(model, stacks_of(model), [inputs("gpt2")] * 3, forward_of(model)):
        break
    del _step
    assert threading.active_count() == before
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_error_in_the_model_reaches_the_caller():
    model = host("gpt2")
    model.transformer.h[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(walk(model, stacks_of(model), [inputs("gpt2")] * 2, forward_of(model)))
    assert threading.active_count() < 10


def test_what_cannot_be_walked_is_refused():
    import transformers

    model = host("bert")
    with pytest.raises(TaskError, match="no calibration batches"):
        next(walk(model, stacks_of(model), [], forward_of(model)))
    with pytest.raises(InputError, match="calls none of the 2 blocks, such as encoder.layer.0"):
        list(walk(model, stacks_of(model), [1], lambda batch: batch))
    config = transformers.AlbertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=96,
        embedding_size=16,
    )
    albert = transformers.AlbertModel(config)
    with pytest.raises(InputError, match="is called twice in one forward: shared blocks"):
        list(walk(albert, stacks_of(albert), [inputs("bert")], forward_of(albert)))

    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 8) for _ in range(2)])

        def forward(self, x):
            for layer in self.encoder[: int(x.flatten()[0])]:
                x = layer(x)
            return x

    early = Early()
    short, long = torch.ones(1, 1, 8), torch.full((1, 1, 8), 2.0)
    with pytest.raises(InputError, match="different ways.*encoder.1.*the end|different ways.*the end.*encoder.1"):
        list(walk(early, stacks_of(early), [short, long], early, lambda n, out: None))
