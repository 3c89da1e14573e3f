"""The wavelet bank: its kernels against torch's convolution, its features by hand, its parts, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from lessen.errors import InputError
from lessen.stored.series import wavelet_bank
from lessen.stored.series.wavelet_bank import DILATIONS, TAPS, WaveletBank, pooled, responses


def series(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_kernels_are_minirockets():
    weights = WaveletBank.full(1, 20).dequantise()
    assert len(TAPS) == 84
    assert (weights.sum(dim=1) == 0).all()
    assert len(torch.unique(weights, dim=0)) == 84


@pytest.mark.parametrize("dilation", DILATIONS)
def test_responses_equal_torch_convolution(dilation):
    x = series(3, 1, 50)
    weight = torch.full((84, 1, 9), -1.0).scatter_(2, TAPS[:, None], 2.0)
    wanted = torch.nn.functional.conv1d(x, weight, padding=4 * dilation, dilation=dilation) * dilation**-1.5
    found = responses(x, TAPS, dilation, torch.zeros(84, dtype=torch.int64))
    assert torch.allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("level", [0.1, -1 / 3, 1e4 / 7])
def test_a_flat_stretch_is_exactly_zero(level):
    x = series(1, 1, 120)
    x[..., 30:90] = level
    for dilation in (1, 2, 4):
        u = responses(x, TAPS, dilation, torch.zeros(84, dtype=torch.int64))
        assert (u[..., 30 + 4 * dilation : 90 - 4 * dilation] == 0).all()


def test_features_and_the_run_that_reaches_the_end():
    u = torch.tensor([[[-1.0, 2.0, 3.0, -4.0, 1.0, 1.0, 1.0]]])
    assert pooled(u)[0, 0].tolist() == pytest.approx([5 / 7, 4.0, 3 / 7, 1.0])
    assert pooled(-u.abs())[0, 0, 2] == 0


def test_scaling_moves_sizes_only_and_odd_lengths_work():
    bank = WaveletBank.full(1, 41)
    x = series(2, 1, 41, seed=2)
    plain, scaled = (bank(v).reshape(2, -1, 8) for v in (x, 4 * x))
    shares, sizes = [0, 2, 4, 6], [1, 3, 5, 7]
    assert torch.equal(plain[..., shares], scaled[..., shares])
    assert torch.allclose(scaled[..., sizes], 4 * plain[..., sizes], rtol=1e-5)
    assert ((plain[..., shares] >= 0) & (plain[..., shares] <= 1)).all()
    assert plain.shape[1] * 8 == bank.features == 4032


def test_a_part_gives_the_features_it_was_asked_for_and_reads_no_other_channel():
    bank, x = WaveletBank.full(3, 30), series(4, 3, 30)
    bank.scale_by(x)
    asked = torch.tensor([5, 4032 * 2 + 77, 900, 6, 4032 * 2 + 80])
    part = bank.part(asked)
    where = bank.feature_rows()[asked]
    assert sorted(map(tuple, part.feature_rows().tolist())) == sorted(map(tuple, where.tolist()))
    order = [part.feature_rows().tolist().index(row) for row in where.tolist()]
    assert torch.equal(part(x)[:, order], bank(x)[:, asked])
    read = part.used_channels
    x[:, [channel for channel in range(3) if channel not in read]] = float("nan")
    assert torch.isfinite(part(x)).all()


def test_blocks_change_nothing(monkeypatch):
    bank, x = WaveletBank.full(2, 25), series(3, 2, 25)
    wanted = bank(x)
    monkeypatch.setattr(wavelet_bank, "CELLS", 9 * 3 * 25 * 50)
    assert torch.equal(bank(x), wanted)


def test_changed_tensors_are_seen():
    bank, x = WaveletBank.full(1, 25).part(torch.arange(40)), series(2, 1, 25)
    before = bank(x)
    bank.kernel.add_(3)
    assert not torch.equal(bank(x), before)


def test_what_does_not_fit_is_refused():
    bank = WaveletBank.full(2, 25).part(torch.arange(9))
    with pytest.raises(InputError, match=r"\[n, 2, 25\], found \(1, 2, 24\)"):
        bank(torch.zeros(1, 2, 24))
    bank.check()
    bank.kernel[0] = 84
    with pytest.raises(ValueError, match="kernel holds 84"):
        bank.check()
    with pytest.raises(ValueError, match="features must lie between 1 and 8, found 0"):
        WaveletBank.of(torch.tensor([[0, 0, 0, 0]]), 1, 9)
