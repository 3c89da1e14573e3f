from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lessen.checkpoints import coder
from lessen.errors import ArtifactError

few = settings(max_examples=60, deadline=None)


@few
@given(hnp.arrays(np.uint8, st.integers(0, 300), elements=st.integers(0, 255)))
def test_symbols_come_back(symbols):
    assert np.array_equal(coder.decode(coder.encode(symbols), symbols.size), symbols)


@few
@given(hnp.arrays(np.uint16, st.integers(0, 300), elements=st.integers(0, 60_000)))
def test_wide_symbols_come_back(symbols):
    back = coder.decode(coder.encode(symbols), symbols.size, np.uint16)
    assert np.array_equal(back, symbols)


@pytest.mark.parametrize("largest", [65_533, 65_534, 65_535])
def test_every_symbol_of_sixteen_bits_comes_back(largest):
    """Tables of more symbols, and of more packed bytes, than sixteen bits can say."""
    random = np.random.default_rng(0)
    symbols = np.minimum(random.geometric(3e-5, 200_000), largest).astype(np.uint16)
    symbols[0] = largest
    assert np.array_equal(coder.decode(coder.encode(symbols), symbols.size, np.uint16), symbols)


@few
@given(st.integers(0, 2**31), st.integers(0, 4000))
def test_symbols_given_a_context_come_back(seed, count):
    random = np.random.default_rng(seed)
    context = random.integers(0, 256, count).astype(np.uint8)
    symbols = (context // 16 + random.integers(0, 3, count)).astype(np.uint8)
    parts = coder.encode_given(symbols, context)
    assert np.array_equal(coder.decode_given(parts, context), symbols)
    assert parts == []


@few
@given(hnp.arrays(np.bool_, st.integers(0, 200)))
def test_masks_come_back(mask):
    assert np.array_equal(coder.decode_mask(coder.encode_mask(mask), mask.size), mask)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_a_mask_costs_its_entropy(share):
    mask = np.random.default_rng(0).random(1 << 18) < share
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) * mask.size / 8
    assert len(coder.encode_mask(mask)) < 1.02 * entropy + 400


def test_a_context_saves_what_it_says():
    random = np.random.default_rng(0)
    context = random.integers(0, 8, 1 << 16).astype(np.uint8)
    symbols = (8 * context + random.integers(0, 8, context.size)).astype(np.uint8)
    given_context = sum(map(len, coder.encode_given(symbols, context)))
    assert given_context < 0.55 * len(coder.encode(symbols))  # 3 bits instead of 6


def test_the_model_is_read_from_integers_in_the_block():
    symbols = np.random.default_rng(1).integers(0, 4, 5000).astype(np.uint8)
    block = coder.encode(symbols)
    assert block == coder.encode(symbols.copy())


@few
@given(st.binary(max_size=80), st.integers(0, 50))
def test_garbage_raises_or_gives_the_number_of_symbols_asked_for(blob, count):
    with contextlib.suppress(ArtifactError):
        assert coder.decode(blob, count).size == count


@few
@given(st.lists(st.binary(max_size=20), max_size=9))
def test_parts_come_back(parts):
    blob = coder.join(parts)
    assert coder.split(blob) == parts
    for cut in range(len(blob)):
        with pytest.raises(ArtifactError):
            coder.split(blob[:cut])


def test_a_dictionary_is_needed_to_read_what_was_written_with_it():
    text = bytes(range(256)) * 3
    blob = coder.compress(text + b"tail", text)
    assert len(blob) < len(coder.compress(text + b"tail"))
    assert coder.decompress(blob, len(text) + 4, text) == text + b"tail"
    with pytest.raises(ArtifactError):
        coder.decompress(blob, len(text) + 5, text)


def test_more_output_than_declared_is_refused():
    with pytest.raises(ArtifactError, match="does not declare"):
        coder.decompress(coder.compress(bytes(1 << 20)), 10)
