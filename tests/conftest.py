"""Shared fixtures: a toy task, threads pinned so that numbers repeat."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import HealthCheck, settings

from breaking_files import Unsynced
from lessen import files
from toy import ToyTask

settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")
"""A busy machine makes every example slow; that says nothing about the code."""


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Hundreds of files and eight thousand tests are no garbage and live to the end: no search goes through them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _pinned():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _unsynced():
    """Tests of faults put their own layers over it, which do sync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FILES", Unsynced())
        yield


@pytest.fixture
def toy() -> ToyTask:
    return ToyTask()


@pytest.fixture(scope="session")
def tokenizer():
    """Forty characters, one token each, so that stop strings can be tested."""
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = {letter: number for number, letter in enumerate("01abcdefghijklmnopqrstuvwxyz23456789.,;:")}
    raw = Tokenizer(models.WordLevel(letters, unk_token="0"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="0", eos_token="1", pad_token="0")
