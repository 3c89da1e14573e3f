"""Rate and distortion by closed forms, MS-SSIM against a plain implementation, BD-rate against numerical integration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lessen.errors import TaskError
from lessen.metrics import PSNR, BitsPerPixel, Metric, MultiScaleSSIM, Outcomes
from lessen.metrics.images import SCALES, bd_rate, ms_ssim


def test_rate_and_psnr_are_ratios_of_sums():
    columns = {
        "bits": np.array([800, 100]),
        "pixels": np.array([400, 100]),
        "squared_error": np.array([1.0, 2.0]),
        "values": np.array([1200, 300]),
        "ms_ssim": np.array([0.9, 0.8]),
    }
    outcomes = Outcomes(columns)
    assert BitsPerPixel()(outcomes) == 900 / 500
    assert PSNR()(outcomes) == pytest.approx(10 * np.log10(1500 / 3.0))
    assert MultiScaleSSIM()(outcomes) == pytest.approx(0.85)
    naive = Metric.left_out(PSNR(), outcomes, np.array([0, 1]), 2)
    np.testing.assert_allclose(PSNR().left_out(outcomes, np.array([0, 1]), 2), naive)


def plain(one: np.ndarray, two: np.ndarray) -> float:
    """Return MS-SSIM of two grey pictures, by convolution with the two-dimensional window."""
    signal = pytest.importorskip("scipy.signal", reason="scipy convolves for the reference")
    places = np.arange(11) - 5
    window = np.exp(-(places[:, None] ** 2 + places**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(x):
        return signal.convolve2d(x, window, mode="valid")

    found = 1.0
    for scale, power in enumerate(SCALES):
        a, b = mean(one), mean(two)
        aa, bb, ab = mean(one * one) - a * a, mean(two * two) - b * b, mean(one * two) - a * b
        structure = (2 * ab + 0.0009) / (aa + bb + 0.0009)
        luminance = (2 * a * b + 0.0001) / (a * a + b * b + 0.0001)
        found *= np.mean(structure * luminance if scale == 4 else structure) ** power
        rows, columns = (side // 2 * 2 for side in one.shape)
        one, two = (x[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3)) for x in (one, two))
    return found


def test_ms_ssim_equals_a_plain_implementation():
    generator = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(generator.normal(size=(2, 3, 180, 197)), axis=2), axis=3)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    noisy = np.clip(smooth + generator.normal(0, 0.03, smooth.shape), 0, 1)
    found = ms_ssim(torch.from_numpy(smooth), torch.from_numpy(noisy))
    expected = [
        np.mean([plain(*pair) for pair in zip(*picture, strict=True)]) for picture in zip(smooth, noisy, strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)
    assert torch.equal(ms_ssim(torch.from_numpy(smooth), torch.from_numpy(smooth)), torch.ones(2, dtype=torch.float64))
    with pytest.raises(TaskError, match="sides of 176 pixels"):
        ms_ssim(torch.zeros(1, 1, 170, 300), torch.zeros(1, 1, 170, 300))


RATES, QUALITIES = np.array([0.11, 0.24, 0.51, 0.98]), np.array([28.1, 30.9, 33.6, 36.0])


def test_the_same_curve_at_other_rates_is_found_exactly():
    assert bd_rate(RATES, QUALITIES, 0.8 * RATES, QUALITIES) == pytest.approx(-0.2)
    assert bd_rate(RATES, QUALITIES, 1.5 * RATES[::-1], QUALITIES[::-1]) == pytest.approx(0.5)
    assert bd_rate(RATES[:3], QUALITIES[:3], 0.5 * RATES[:3], QUALITIES[:3]) == pytest.approx(-0.5)


def test_bd_rate_equals_numerical_integration():
    other_rates, other = np.array([0.10, 0.2, 0.45, 1.1, 1.9]), np.array([28.6, 31.0, 33.9, 37.2, 39.0])
    places = np.linspace(max(QUALITIES[0], other[0]), min(QUALITIES[-1], other[-1]), 20001)
    logs = [
        np.polyval(np.polyfit(quality, np.log(rate), 3), places)
        for rate, quality in ((RATES, QUALITIES), (other_rates, other))
    ]
    expected = np.exp(np.trapezoid(logs[1] - logs[0], places) / (places[-1] - places[0])) - 1
    assert bd_rate(RATES, QUALITIES, other_rates, other) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("rates", "qualities", "match"),
    [
        (RATES[:2], QUALITIES[:2], "three points"),
        (RATES, QUALITIES + 20, "no quality in common"),
        (-RATES, QUALITIES, "above zero"),
        (RATES, np.full(4, 30.0), "different quality"),
    ],
)
def test_curves_that_cannot_be_compared_are_refused(rates, qualities, match):
    with pytest.raises(TaskError, match=match):
        bd_rate(RATES, QUALITIES, rates, qualities)
