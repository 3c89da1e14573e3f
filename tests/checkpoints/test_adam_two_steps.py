from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adam_pieces import F32, ROLES, few, trained
from lessen.checkpoints import adam_step, adam_two_steps, coder, exact
from lessen.checkpoints.blocks import Form, decode_piece, encode_piece
from lessen.checkpoints.near import Need
from lessen.errors import ArtifactError
from wild_bits import wild_pieces

BETAS = (0.9, 0.999)


def some(piece, rows, columns):
    return {role: words.reshape(-1, columns)[rows].reshape(-1) for role, words in piece.items()}


def two_steps(rows: int, columns: int, twice: int):
    """A table of which the first rows moved twice, the others once; and the step sizes of the latter."""
    now, before = trained(rows, columns, [rows, twice])
    book = np.array(sorted(0.01 * (1 - 0.999**k) ** 0.5 / (1 - 0.9**k) for k in (4, 5)), np.float32)
    chosen = slice(0, twice)
    return some(now, chosen, columns), some(before, chosen, columns), book


def test_two_steps_are_found_with_their_sizes():
    now, before, book = two_steps(3000, 16, 2000)
    twice, (_, early, late) = adam_two_steps.moved_twice(now, before, 16, BETAS, book)
    assert twice.mean() > 0.95
    assert (book[early[twice]] == book[1]).mean() > 0.95  # step 4 had the larger size
    assert (book[late[twice]] == book[0]).mean() > 0.95


def test_the_roots_are_the_gradients():
    """g = 1 and h = -2 from zero moments: A = b1 - 2 and B = b2 + 4 give g back as one of the roots."""
    b1, b2 = BETAS
    first, second = (1 - b1) * (b1 * 1 - 2), (1 - b2) * (b2 * 1 + 4)
    bits = [np.array([x], np.float32).view(np.uint32) for x in (first, second, 0.0)]
    roots = adam_two_steps._first_steps(bits[0], bits[1], {"first": bits[2], "second": bits[2]}, 1, BETAS)
    unit = (1 - b1) / np.sqrt(1 - b2)  # exp_avg / sqrt(exp_avg_sq) after g = 1
    assert min(abs(root[0, 0] - unit) for root in roots) < 1e-4


def test_rows_that_moved_twice_cost_two_arrays_and_come_back():
    now, before, book = two_steps(6000, 16, 4000)
    twice, moves = adam_two_steps.moved_twice(now, before, 16, BETAS, book)
    now, before = some(now, twice, 16), some(before, twice, 16)
    blob = adam_two_steps.encode(now, before, 16, BETAS, book, tuple(move[twice] for move in moves))
    weight = len(coder.split(blob)[5]) / now["weight"].size
    assert weight < 0.5 * len(exact.encode(now["weight"], "F32", before["weight"])) / now["weight"].size
    back = adam_two_steps.decode(blob, before, 16, BETAS, book)
    assert all(np.array_equal(back[role], now[role]) for role in ROLES)


@few
@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 99), st.sampled_from([0.0, 0.3]))
def test_any_bits_come_back(rows, columns, seed, wild):
    random = np.random.default_rng(seed)
    now, before = wild_pieces(random, ROLES, rows * columns, wild)
    book = np.sort(random.normal(0.01, 0.001, int(random.integers(1, 9)))).astype(np.float32)
    _, moves = adam_two_steps.moved_twice(now, before, columns, BETAS, book)
    blob = adam_two_steps.encode(now, before, columns, BETAS, book, moves)
    back = adam_two_steps.decode(blob, before, columns, BETAS, book)
    assert all(np.array_equal(back[role], now[role]) for role in ROLES)


def test_a_table_of_rows_moved_once_twice_and_often_comes_back_and_is_half_the_size():
    now, before = trained(20_000, 16, [15_000, 4000, 800])
    form, moved = Form(F32, 20_000, 16), np.arange(20_000) < 15_000
    flags, blob, _ = encode_piece(now, before, form, None, moved)
    back = decode_piece(flags, blob, before, form, Need.ALL)
    assert all(np.array_equal(back[role], now[role]) for role in ROLES)
    assert 2 * len(blob) < len(encode_piece(now, before, form, None, None)[1])


def test_a_damaged_block_is_refused_or_differs_but_never_crashes():
    now, before, book = two_steps(900, 4, 500)
    _, moves = adam_two_steps.moved_twice(now, before, 4, BETAS, book)
    blob = adam_two_steps.encode(now, before, 4, BETAS, book, moves)
    for cut in range(0, len(blob), 97):
        with pytest.raises(ArtifactError):
            adam_two_steps.decode(blob[:cut], before, 4, BETAS, book)
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(blob)
        damaged[int(random.integers(len(blob)))] ^= 1 << int(random.integers(8))
        with suppress(ArtifactError, ValueError, IndexError, OverflowError):
            adam_two_steps.decode(bytes(damaged), before, 4, BETAS, book)
    with pytest.raises(ArtifactError, match="malformed"):
        adam_step.steps_of(b"\1\0\0\0\0\0")
