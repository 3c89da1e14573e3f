from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.checkpoints import exact
from lessen.errors import ArtifactError

WIDTHS = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1, "I16": 2}
few = settings(max_examples=50, deadline=None)


def random_words(kind: str, count: int, seed: int, spread: int) -> np.ndarray:
    """Bits of every pattern: NaN payloads, infinities, denormals, both zeros."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, count * WIDTHS[kind], dtype=np.uint8)
    raw[random.random(raw.size) < spread / 10] = 0
    return raw.view(f"<u{WIDTHS[kind]}")


@few
@given(st.sampled_from(sorted(WIDTHS)), st.integers(0, 3000), st.integers(0, 99), st.integers(0, 9))
def test_any_bits_come_back_alone(kind, count, seed, spread):
    words = random_words(kind, count, seed, spread)
    blob = exact.encode(words, kind)
    assert np.array_equal(exact.decode(blob, count, kind, None, None, WIDTHS[kind]), words)


@few
@given(st.sampled_from(sorted(WIDTHS)), st.integers(0, 3000), st.integers(0, 99), st.floats(0.2, 3))
def test_any_bits_come_back_against_a_reference(kind, count, seed, scale):
    words, reference = random_words(kind, count, seed, 3), random_words(kind, count, seed + 1, 3)
    near = np.random.default_rng(seed).random(count) < 0.7
    words[near] = reference[near] + np.random.default_rng(seed).integers(0, 3, int(near.sum())).astype(words.dtype)
    blob = exact.encode(words, kind, reference, None, scale)
    assert np.array_equal(exact.decode(blob, count, kind, reference, None, WIDTHS[kind]), words)


@few
@given(st.integers(0, 3000), st.integers(0, 99))
def test_any_bits_come_back_with_a_context(count, seed):
    words, context = random_words("F32", count, seed, 2), random_words("F32", count, seed + 1, 2)
    blob = exact.encode(words, "F32", None, context)
    assert np.array_equal(exact.decode(blob, count, "F32", None, context, 4), words)


def test_small_moves_cost_few_bits():
    random = np.random.default_rng(0)
    before = random.normal(0, 0.02, 1 << 16).astype(np.float32)
    after = before + random.normal(0, 2e-6, before.size).astype(np.float32)
    moved = len(exact.encode(after.view(np.uint32), "F32", before.view(np.uint32)))
    alone = len(exact.encode(after.view(np.uint32), "F32"))
    assert alone < 0.88 * after.nbytes  # the exponent
    # the move has log2(2e-6 / spacing of floats near 0.016) + 2.05 bits: about 12.1
    assert moved * 8 / after.size < 13.5


def test_an_unmoved_array_costs_nothing():
    words = random_words("F32", 1 << 16, 0, 0)
    assert len(exact.encode(words, "F32", words)) < 400


def test_a_first_moment_is_cheaper_given_the_second():
    random = np.random.default_rng(0)
    second = np.exp(random.normal(-18, 4, 1 << 16)).astype(np.float32)
    first = (np.sqrt(second) * random.normal(0, 0.3, second.size)).astype(np.float32)
    given_second = len(exact.encode(first.view(np.uint32), "F32", None, second.view(np.uint32)))
    assert given_second < 0.97 * len(exact.encode(first.view(np.uint32), "F32"))


def test_a_decay_that_is_known_is_used():
    random = np.random.default_rng(0)
    before = np.exp(random.normal(-18, 4, 1 << 16)).astype(np.float32)
    after = (before * np.float32(0.9) * (1 + random.normal(0, 1e-4, before.size))).astype(np.float32)
    with_scale = len(exact.encode(after.view(np.uint32), "F32", before.view(np.uint32), None, 0.9))
    assert with_scale < 0.75 * len(exact.encode(after.view(np.uint32), "F32", before.view(np.uint32)))


def test_a_block_that_builds_on_something_says_so():
    words = random_words("F32", 2000, 0, 0)
    with pytest.raises(ArtifactError, match="reference"):
        exact.decode(exact.encode(words, "F32", words), words.size, "F32", None, None, 4)


@few
@given(st.binary(max_size=120))
def test_garbage_raises_a_named_error(blob):
    words = random_words("F32", 16, 0, 0)
    # the archive turns the other two into an ArtifactError with the tensor's name
    with suppress(ArtifactError, ValueError, IndexError):
        assert exact.decode(blob, 16, "F32", words, None, 4).size == 16
