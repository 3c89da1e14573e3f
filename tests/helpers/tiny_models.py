"""Tiny randomly initialised language models; nothing is downloaded."""

from __future__ import annotations

import random

import torch
import transformers

from lessen.decoding.cost import CostCurve

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FLAT = CostCurve((1, 4096), (1.0, 1.0001))
"""Costs under which every draft pays, so that drafting is exercised."""


def llama(vocab: int = 40, seed: int = 0, **changes):
    torch.manual_seed(seed)
    options = SHAPE | {"num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2} | changes
    config = transformers.LlamaConfig(vocab_size=vocab, bos_token_id=0, eos_token_id=1, pad_token_id=0, **options)
    return transformers.LlamaForCausalLM(config).eval()


def mistral(window: int = 6):
    torch.manual_seed(1)
    config = transformers.MistralConfig(
        vocab_size=40,
        num_key_value_heads=2,
        sliding_window=window,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        **SHAPE,
    )
    return transformers.MistralForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(2)
    config = transformers.GPT2Config(
        vocab_size=40,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def bloom():
    torch.manual_seed(3)
    config = transformers.BloomConfig(
        vocab_size=40,
        hidden_size=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    return transformers.BloomForCausalLM(config).eval()


def mpt(context: int = 32):
    torch.manual_seed(4)
    config = transformers.MptConfig(vocab_size=40, d_model=32, n_layers=2, n_heads=4, max_seq_len=context)
    return transformers.MptForCausalLM(config).eval()


def built(name: str, seed: int = 0, **changes):
    """A tiny model of a family of transformers, by the prefix of its classes; it never ends by itself.

    Weights are drawn wide, so that windows, caps and switches change what is said.
    """
    torch.manual_seed(seed)
    options = SHAPE | {"num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3} | changes
    options |= {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    config = (getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config"))(**options)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    model.generation_config.eos_token_id = None
    return model


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 24,
}
"""Rotary frequencies that change at position 24."""


def phi3_longrope():
    return built("Phi3", rope_parameters=dict(LONGROPE), original_max_position_embeddings=24)


def repeating_prompt(rnd: random.Random, longest: int = 24, vocab: int = 40) -> list[int]:
    """A prompt that repeats a short text, so that there is something to copy."""
    text = [rnd.randrange(2, vocab) for _ in range(rnd.randint(2, 7))]
    return (text * longest)[: rnd.randint(1, longest)]


def plain(model, prompt: list[int], new: int = 20, **options) -> list[int]:
    """What `model.generate` emits for one prompt."""
    options.setdefault("do_sample", False)
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **options)
    return out[0, len(prompt) :].tolist()
