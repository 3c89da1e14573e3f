from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adam_pieces import F32, ROLES, few, trained
from lessen.checkpoints import adam_step, coder, exact
from lessen.checkpoints.blocks import REPLAY, Form, decode_piece, encode_piece
from lessen.checkpoints.near import Need
from lessen.errors import ArtifactError
from wild_bits import wild_pieces


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.99), (0.0, 0.999)])
def test_rows_of_one_step_are_found_and_only_those(betas):
    now, before = trained(900, 8, [900, 300], betas=betas)
    once, found = adam_step.moved_once(now, before, 8)
    assert found == betas
    assert once[300:].all()
    assert not once[:300].any()


def test_under_other_betas_or_optimisers_no_row_is():
    now, before = trained(900, 8, [900], betas=(0.87, 0.9973))
    assert not adam_step.moved_once(now, before, 8)[0].any()
    random = np.random.default_rng(0)
    now = {role: random.normal(size=7200).astype(np.float32).view(np.uint32) for role in ROLES}
    assert not adam_step.moved_once(now, before, 8)[0].any()


def test_one_step_is_predicted_to_the_last_places_and_costs_little_over_one_array():
    now, before = trained(20_000, 16, [20_000])
    blob = adam_step.encode(now, before, 16, (0.9, 0.999))
    first, second, weight = (len(part) * 8 / now["first"].size for part in coder.split(blob)[3:])
    assert first > 20  # the gradient is news
    assert second < 2
    assert weight < 2
    plain = sum(len(exact.encode(now[role], "F32", before[role])) for role in ROLES)
    assert plain > 2.3 * len(blob)
    back = adam_step.decode(blob, before, 16)
    assert all(np.array_equal(back[role], now[role]) for role in ROLES)


def test_each_step_of_training_has_one_step_size():
    torch.manual_seed(0)
    now, before = trained(2000, 8, [2000])
    blob = adam_step.encode(now, before, 8, (0.9, 0.999))
    book = np.frombuffer(coder.split(blob)[1], "<f4")
    steps = 4
    assert book == pytest.approx([0.01 * (1 - 0.999**steps) ** 0.5 / (1 - 0.9**steps)], rel=1e-6)


@few
@given(st.integers(1, 400), st.integers(1, 9), st.integers(0, 99), st.sampled_from([0.0, 0.3]))
def test_any_bits_come_back(rows, columns, seed, wild):
    """NaN, infinities, zero rows and numbers that overflow are coded like any others, if worse."""
    random = np.random.default_rng(seed)
    now, before = wild_pieces(random, ROLES, rows * columns, wild)
    back = adam_step.decode(adam_step.encode(now, before, columns, (0.9, 0.999)), before, columns)
    assert all(np.array_equal(back[role], now[role]) for role in ROLES)


@pytest.mark.parametrize("steps", [[700], [700, 300], [300, 300]])
def test_a_piece_of_which_some_rows_moved_once_comes_back(steps):
    now, before = trained(1000, 8, steps)
    form, moved = Form(F32, 1000, 8), np.arange(1000) < max(steps)
    flags, blob, rebuilt = encode_piece(now, before, form, None, moved)
    assert bool(flags & REPLAY) == (steps != [300, 300])
    back = decode_piece(flags, blob, before, form, Need.ALL)
    for role in ROLES:
        assert np.array_equal(back[role], now[role])
        assert np.array_equal(rebuilt[role], now[role])


@pytest.mark.parametrize("size", [1e-4, 1e-7, 3e-8])
def test_tables_of_one_column_come_back_at_any_step_size(size):
    """Steps so small that rounding gives every row a size of its own."""
    random = np.random.default_rng(0)
    rows = 200_000
    before = {
        "weight": random.normal(0, 1, rows).astype(np.float32),
        "first": random.normal(0, 0.1, rows).astype(np.float32),
        "second": random.random(rows).astype(np.float32) * np.float32(0.01),
    }
    gradient = random.normal(0, 1, rows).astype(np.float32)
    first = before["first"] * np.float32(0.9) + gradient * np.float32(0.1)
    second = before["second"] + (gradient * gradient - before["second"]) * np.float32(0.001)
    weight = before["weight"] - np.float32(size) * first / (np.sqrt(second) + np.float32(1e-8))
    now = {"weight": weight, "first": first, "second": second}
    bits = ({role: values.view(np.uint32) for role, values in piece.items()} for piece in (now, before))
    now_bits, before_bits = bits
    blob = adam_step.encode(now_bits, before_bits, 1, (0.9, 0.999))
    back = adam_step.decode(blob, before_bits, 1)
    assert all(np.array_equal(back[role], now_bits[role]) for role in ROLES)
    assert len(coder.split(blob)[1]) <= 4 * 4096


def test_a_damaged_block_is_refused_or_differs_but_never_crashes():
    now, before = trained(500, 4, [500])
    blob = adam_step.encode(now, before, 4, (0.9, 0.999))
    for cut in range(0, len(blob), 97):
        with pytest.raises(ArtifactError):
            adam_step.decode(blob[:cut], before, 4)
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(blob)
        damaged[int(random.integers(len(blob)))] ^= 1 << int(random.integers(8))
        with suppress(ArtifactError, ValueError, IndexError, OverflowError):
            adam_step.decode(bytes(damaged), before, 4)
