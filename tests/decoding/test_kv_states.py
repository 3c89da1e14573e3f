from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.decoding.kv_codes import COARSEST, FINEST, Form, encode_keys, encode_values, run_of
from lessen.decoding.kv_states import States, held_bytes
from lessen.errors import InputError, NonFiniteError


def drawn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(states: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """The quantiser of the sheet with a minimum in place of a zero point, scale and minimum in fp16."""
    low, high = states.min(axis, keepdims=True), states.max(axis, keepdims=True)
    scale = np.clip((high - low) / (2**bits - 1), FINEST, COARSEST).astype(np.float16).astype(np.float32)
    low = low.astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint((states - low) / scale), 0, 2**bits - 1)
    return codes * scale + low


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_those_of_a_numpy_reference(bits):
    states = drawn(2, 3, 8, 16)  # heads, blocks, tokens, channels
    keys, values = encode_keys(states, bits), encode_values(states, bits, 4)
    out = torch.empty_like(states)
    keys.decode(out)
    assert np.allclose(out.numpy(), reference(states.numpy(), bits, 2), atol=1e-6)  # along the tokens of a block
    values.decode(out)
    wanted = reference(states.numpy().reshape(2, 3, 8, 4, 4), bits, 4).reshape(2, 3, 8, 16)  # along runs of channels
    assert np.allclose(out.numpy(), wanted, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 8]), width=st.integers(1, 24), tokens=st.integers(1, 9), seed=st.integers(0, 99),
    scale=st.sampled_from([1e-6, 1.0, 300.0]), shift=st.sampled_from([0.0, 20.0]),
)  # fmt: skip
def test_no_state_moves_by_more_than_half_a_step_and_what_fp16_rounds(bits, width, tokens, seed, scale, shift):
    states = drawn(1, 2, tokens, width, seed=seed, scale=scale) + shift
    keys = encode_keys(states, bits)
    out = torch.empty_like(states)
    keys.decode(out)
    ends = states.abs().amax(-2, keepdim=True)
    assert bool(((out - states).abs() <= 0.51 * keys.scales.float() + 2**-9 * ends + 1e-6).all())
    assert keys.codes.shape[-1] == -(-width * bits // 8)


def test_states_that_fp16_cannot_scale_are_refused():
    for bad in (float("nan"), float("inf"), 1e6):
        with pytest.raises(NonFiniteError, match="cannot be quantised"):
            encode_keys(torch.full((1, 1, 4, 4), bad), 4)


def test_channels_that_share_a_scale_divide_the_head():
    assert [run_of(64, 32), run_of(80, 32), run_of(7, 4), run_of(8, 100)] == [32, 20, 1, 8]


def filled(states, keys, values, steps):
    """Add tokens in steps; return what the last pass read."""
    start, found = 0, None
    for step in steps:
        states.add(keys[:, start : start + step], values[:, start : start + step])
        found = states.read()
        states.settle()
        start += step
    return found


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_first_and_newest_tokens_are_exact_and_the_rest_is_near(bits):
    keys, values = drawn(2, 60, 8), drawn(2, 60, 8, seed=1)
    states = States(Form(bits, group=4, residual=8), exact=3)
    filled(states, keys, values, [21, 1, 1, 20, 17])
    got = states.read()
    for mine, exact in zip(got, (keys, values), strict=True):
        assert torch.equal(mine[:, :3], exact[:, :3])
        assert torch.equal(mine[:, -8:], exact[:, -8:])
        assert 0 < float((mine - exact).abs().max()) < 6 / (2**bits - 1)
    assert states.length == states.held == 60


def test_a_pass_sees_its_own_tokens_exactly_and_earlier_ones_in_codes():
    keys, values = drawn(2, 40, 8), drawn(2, 40, 8, seed=1)
    states = States(Form(2, group=4, residual=0))
    got = filled(states, keys, values, [20, 20])[0]
    assert torch.equal(got[:, 20:], keys[:, 20:])
    assert not torch.equal(got[:, :20], keys[:, :20])


def test_memory_really_falls():
    """The trap of kvpress 225: codes that are kept beside, or in, memory of the full size."""
    keys, values = drawn(3, 2000, 64), drawn(3, 2000, 64, seed=1)
    exact = held_bytes([keys, values])
    for bits, share in ((8, 0.35), (4, 0.23), (2, 0.17)):
        states = States(Form(bits, group=32, residual=64), exact=4)
        filled(states, keys, values, [500] * 4)
        assert held_bytes(states) < share * exact
        words = 2 * 3 * (2000 - 64 - 32) * 64 * (bits / 8 + 4 / 32)
        assert held_bytes(states) >= words  # codes, and a scale and a minimum in fp16 for each 32


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 50), exact=st.integers(0, 6), residual=st.integers(0, 6))
def test_a_cut_cache_goes_on_with_what_it_held(cut, exact, residual):
    keys, values = drawn(1, 50, 4), drawn(1, 50, 4, seed=1)
    states = States(Form(4, group=4, residual=residual), exact=exact)
    filled(states, keys, values, [50])
    before = states.read()[0].clone()
    states.cut(cut)
    assert states.length == cut
    if cut:
        assert torch.equal(states.read()[0], before[:, :cut])
    states.add(keys[:, :9], values[:, :9])
    assert torch.equal(states.read()[0][:, -9:], keys[:, :9])
    assert states.length == cut + 9


@settings(max_examples=30, deadline=None)
@given(first=st.integers(1, 40), exact=st.integers(0, 6), residual=st.integers(0, 6), group=st.integers(1, 5))
def test_no_pass_up_to_the_bound_would_have_seen_other_codes_token_by_token(first, exact, residual, group):
    form = Form(4, group=group, residual=residual)
    states = States(form, exact=exact)
    states.add(drawn(1, first, 4), drawn(1, first, 4))
    states.settle()
    coded, bound = states._coded, states.until_codes()
    for step in range(1, bound + 1):
        assert states._coded == coded, f"token {step} of {bound} sees other codes"
        states.add(drawn(1, 1, 4), drawn(1, 1, 4))
        states.settle()
    assert states._coded > coded


@pytest.mark.parametrize("bits", [4, 16])
def test_a_window_forgets_what_no_query_sees_and_keeps_the_rest(bits):
    keys, values = drawn(1, 60, 4), drawn(1, 60, 4, seed=1)
    states = States(Form(bits, group=4, residual=4), exact=2, window=10)
    filled(states, keys, values, [1] * 60)
    assert states.length == 60
    assert 9 <= states.held <= 9 + 4
    assert states.gone == 60 - states.held
    assert torch.equal(states.read()[0][:, -4:], keys[:, -4:])
    with pytest.raises(InputError, match="forgot the first"):
        states.cut(20)


def test_bfloat16_states_come_back_as_bfloat16():
    keys = drawn(1, 30, 8).bfloat16()
    states = States(Form(8, group=4, residual=4))
    filled(states, keys, keys, [30])
    assert states.read()[0].dtype == torch.bfloat16
    assert float((states.read()[0].float() - keys.float()).abs().max()) < 0.05
