"""The published recipe that benchmarks compare with is itself held to the paper's description."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.checkpoints import excp_recipe as excp
from lessen.checkpoints import NearSettings, near


def test_codes_are_packed_first_code_in_the_top_bits():
    assert excp.pack_codes(np.array([1, 15, 0, 7]), 4).tolist() == [0x1F, 0x07]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 64, 1001])
def test_packed_codes_come_back(bits, count):
    codes = np.random.default_rng(0).integers(0, 2**bits, count)
    assert np.array_equal(excp.unpack_codes(excp.pack_codes(codes, bits), bits, count), codes)


def test_supports_are_nested_and_values_few():
    random = np.random.default_rng(0)
    before = {"w": random.normal(0, 0.02, (90, 70)).astype(np.float32)}
    second = np.exp(random.normal(-14, 1, (90, 70))).astype(np.float32)
    first = (np.sqrt(second) * random.normal(0, 1, second.shape)).astype(np.float32)
    now = {"w": (before["w"] + random.normal(0, 1e-3, second.shape).astype(np.float32), first, second)}
    stored, back = excp.compress(now, before, scaled=True)
    weight, kept_first, kept_second = back["w"]
    moved = weight != before["w"]
    assert np.unique(weight - before["w"]).size > 1
    assert np.array_equal(kept_first != 0, (kept_first != 0) & moved)
    assert np.array_equal(kept_second != 0, (kept_second != 0) & moved)
    assert len(np.unique(kept_first)) <= 16
    assert len(excp.archive(stored)) < 0.4 * len(stored)
    # the rule `tensor` of lessen prunes the very same weights
    triple = near.Triple(now["w"][0], first, second)
    _, ours, _ = near.encode(triple, before["w"], NearSettings(rule="tensor"))
    assert np.array_equal(ours.weight != before["w"], moved)


def test_half_precision_codebooks_lose_small_second_moments():
    values = np.full((40, 50), 1e-12, np.float32) * np.random.default_rng(0).uniform(1, 9, (40, 50)).astype(np.float32)
    _, back = excp.quantise(values, np.ones(values.shape, bool), 4)
    assert not back.any()
