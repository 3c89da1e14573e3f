"""Folders of tiny language models with a real byte-level tokenizer, as users bring them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = ["the cat sat on a mat and the dog ran", "a dog and a cat ran; the mat sat", "12 cats, 345 dogs! don't"] * 4
ENDS = ["<|begin|>", "<|end|>", "<|pad|>"]


def byte_level(vocab: int = 280) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that splits as SmolLM2's does."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=ENDS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=ENDS[0],
        eos_token=ENDS[1],
        pad_token=ENDS[2],
        chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:",
    )


SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip


def language_model(family: str = "Llama", vocab: int = 280, seed: int = 0, **changes):
    """A tiny model of a family of transformers, drawn wide so that every layer changes what is said."""
    torch.manual_seed(seed)
    kind = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    if family == "GPT2":
        shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
    else:
        shape = SHAPE
    config = kind(**{**shape, "vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, **changes})
    cls = getattr(transformers, f"{family}ForCausalLM", None) or getattr(transformers, f"{family}LMHeadModel")
    model = cls(config).eval()
    with torch.no_grad():  # norms and biases too, as trained ones are
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def host_folder(place: Path, family: str = "Llama", **changes) -> Path:
    """Save a tiny model and its tokenizer as a folder."""
    language_model(family, **changes).save_pretrained(place)
    byte_level().save_pretrained(place)
    return place
