"""The packed layout, against an independent quantiser written from the formulas of the method sheet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.stored.tables import rowwise


def reference_codes(weight: np.ndarray, bits: int, low=None, high=None):
    """Codes, scale and bias of each row by the written rules, in numpy float32."""
    x = weight.astype(np.float32)
    low = x.min(1) if low is None else low
    high = x.max(1) if high is None else high
    if bits == 8:
        reach = (high - low).astype(np.float32)
        inverse = np.float32(255.0) / (reach + np.float32(1e-8))
        codes = np.rint((x - low[:, None]) * inverse[:, None])
        return codes.astype(np.uint8), (reach / np.float32(255.0)).astype(np.float32), low
    top = np.float32(2**bits - 1)
    bias = low.astype(np.float16)
    reach = high - bias.astype(np.float32)
    scale = np.where(reach == 0, np.float32(1), reach / top).astype(np.float16)
    wide = scale.astype(np.float32)
    wide = np.where(wide == 0, np.float32(1), wide)
    with np.errstate(over="ignore"):
        inverse = np.float32(1) / wide
    wide, inverse = np.where(np.isinf(inverse), 1, wide), np.where(np.isinf(inverse), 1, inverse)
    codes = np.rint((x - bias.astype(np.float32)[:, None]) * inverse[:, None].astype(np.float32)).clip(0, top)
    return codes.astype(np.uint8), wide.astype(np.float16), bias


def greedy_range(row: np.ndarray, bits: int, bins: int = 200, ratio: float = 0.16):
    """The range search of arXiv 1911.02079 for one row, in float32 as the operator has it."""
    one = np.float32

    def loss(low, high):
        low = one(np.float16(low))
        scale = one(np.float16((high - low) / one(2**bits - 1)))
        inverse = one(1) / scale if scale else one(1)
        codes = np.rint((row - low) * inverse).clip(0, 2**bits - 1)
        return ((row - (codes.astype(one) * scale + low)) ** 2).sum(dtype=np.float64)

    low, high = one(row.min()), one(row.max())
    step = one((high - low) / one(bins))
    floor = one(int(bins * (1 - ratio))) * step
    best, best_range, current = loss(low, high), (low, high), loss(low, high)
    a, b = low, high
    while a + floor < b:
        left, right = loss(a + step, b), loss(a, b - step)
        if current < left and current < right and current < best:
            best, best_range = current, (a, b)
        if left < right:
            a, current = one(a + step), left
        else:
            b, current = one(b - step), right
    return best_range


def table(rows: int = 300, dim: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    scale = torch.logspace(-4, 2, rows).unsqueeze(1)
    return (torch.randn(rows, dim, generator=generator) + torch.randn(rows, 1, generator=generator)) * scale


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_packing_equals_the_written_formulas_bit_for_bit(bits):
    weight = table()
    weight[0], weight[1] = 0.0, 0.25
    packed = rowwise.pack(weight, bits)
    codes, scale, bias = reference_codes(weight.numpy(), bits)
    got_scale, got_bias = rowwise.scales(packed, bits)
    assert packed.shape == (300, rowwise.row_bytes(12, bits))
    assert np.array_equal(rowwise.codes(packed, 12, bits).numpy(), codes)
    assert np.array_equal(got_scale[:, 0].numpy(), scale.astype(np.float32))
    assert np.array_equal(got_bias[:, 0].numpy(), bias.astype(np.float32))


@pytest.mark.parametrize("bits", [4, 2])
def test_greedy_ranges_never_do_worse_by_more_than_rounding_and_pay_on_gaussian_rows(bits):
    weight = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    plain = (rowwise.unpack(rowwise.pack(weight, bits), 16, bits) - weight).square().sum(1)
    greedy = (rowwise.unpack(rowwise.pack(weight, bits, "greedy"), 16, bits) - weight).square().sum(1)
    assert float(greedy.mean()) < 0.95 * float(plain.mean())
    found = [greedy_range(row, bits) for row in weight.numpy()[:40]]
    low, high = (np.array(side, dtype=np.float32) for side in zip(*found, strict=True))
    codes, _, _ = reference_codes(weight.numpy()[:40], bits, low, high)
    same = (rowwise.codes(rowwise.pack(weight[:40], bits, "greedy"), 16, bits).numpy() == codes).all(1)
    assert same.mean() >= 0.9  # a tie between two equal losses may fall either way in another summation order


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 7, 16])
def test_error_is_at_most_half_a_step_and_rounding_of_the_parameters(bits, dim):
    weight = table(200, dim)
    packed = rowwise.pack(weight, bits)
    scale, bias = rowwise.scales(packed, bits)
    back = rowwise.unpack(packed, dim, bits)
    precision = 2.0**-10 if bits < 8 else 2.0**-22
    allowed = scale / 2 + precision * (bias.abs() + scale * 2**bits) + 1e-7
    assert bool(((back - weight).abs() <= allowed).all())


@given(bits=st.sampled_from([8, 4, 2]), dim=st.integers(1, 33), seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_codes_and_lookup_agree_for_any_width(bits, dim, seed):
    weight = torch.randn(9, dim, generator=torch.Generator().manual_seed(seed))
    packed = rowwise.pack(weight, bits)
    ids = torch.tensor([0, 8, 3, 3])
    found = rowwise.look_up(packed, bits, ids, torch.arange(4))[:, :dim]
    assert torch.allclose(found, rowwise.unpack(packed, dim, bits)[ids], atol=1e-6)


@pytest.mark.parametrize("extreme", [0.0, 1e-9, 1e4])
def test_constant_tiny_and_wide_rows_stay_finite(extreme):
    weight = torch.full((4, 8), 0.5) + extreme * torch.arange(8)
    for bits in (8, 4, 2):
        back = rowwise.unpack(rowwise.pack(weight, bits), 8, bits)
        assert bool(torch.isfinite(back).all())
        assert bool(((back - weight).abs() <= extreme * 7 / (2**bits - 1) + 1e-2 * extreme + 1e-3).all())


def test_rows_beyond_fp16_are_refused_below_8_bits():
    weight = torch.tensor([[-70_000.0, 0.0, 1.0, 2.0]])
    assert not rowwise.representable(weight, 4)
    assert rowwise.representable(weight, 8)
    with pytest.raises(ValueError, match="use 8 bits"):
        rowwise.pack(weight, 4)
    with pytest.raises(ValueError, match="range"):
        rowwise.pack(torch.tensor([[-3e38, 3e38]]), 8)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_fbgemm_rows_carry_fp16_parameters_first(bits):
    weight = table(50, 16)
    packed = rowwise.pack(weight, bits)
    rows = rowwise.fbgemm_rows(packed, bits)
    assert rows.shape == (50, 16 * bits // 8 + 4)
    parameters = rows[:, :4].contiguous().view(torch.float16).float()
    scale, bias = rowwise.scales(packed, bits)
    assert torch.equal(parameters[:, :1], scale.half().float())
    assert torch.equal(parameters[:, 1:], bias.half().float())
    assert torch.equal(rows[:, 4:], packed[:, : 16 * bits // 8])
    with pytest.raises(ValueError, match="65504"):
        rowwise.fbgemm_rows(rowwise.pack(weight * 1e6, 8), 8)
