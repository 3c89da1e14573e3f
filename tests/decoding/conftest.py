"""Fixtures of the decoding tests; they need the extra [hf]."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("transformers") else ["test_*.py"]


@pytest.fixture(scope="session")
def model():
    from tiny_models import llama

    return llama()


@pytest.fixture(scope="session")
def tokenizer():
    """Forty characters, one token each, so that stop strings can be tested."""
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = {letter: number for number, letter in enumerate("01abcdefghijklmnopqrstuvwxyz23456789.,;:")}
    raw = Tokenizer(models.WordLevel(letters, unk_token="0"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="0", eos_token="1", pad_token="0")
