"""Metrics of pictures and their codecs: rate, distortion, and the distance of two curves.

bits           of a picture's file          pixels   height x width
squared_error  summed over all values       values   pixels x channels; pictures are scaled from 0 to 1
ms_ssim        of a picture: `ms_ssim` computes it
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.metrics.base import Floats, MeanMetric, RatioMetric
from lessen.metrics.outcomes import Array, Outcomes

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, finest first (Wang, Simoncelli and Bovik, Asilomar 2003)."""
WINDOW, SIGMA = 11, 1.5


class BitsPerPixel(RatioMetric):
    """Bits of all files over pixels of all pictures."""

    name, title, unit = "bits-per-pixel", "bits per pixel", "bit"
    higher_is_better = False
    reads = ("bits", "pixels")


class PSNR(RatioMetric):
    """Peak signal to noise ratio of all pictures together, in dB: 10 log10(values / squared error), peak 1."""

    name, title, unit = "psnr", "PSNR", "dB"
    reads = ("squared_error", "values")

    def of_sums(self, totals: Floats) -> Floats:
        """Return the ratio in decibels; infinite where nothing differs."""
        with np.errstate(divide="ignore"):
            return np.asarray(-10.0 * np.log10(super().of_sums(totals)))


class MultiScaleSSIM(MeanMetric):
    """Mean multi-scale structural similarity of a picture."""

    name, title = "ms-ssim", "MS-SSIM"
    reads = ("ms_ssim",)

    def each(self, outcomes: Outcomes) -> Floats:
        """Return the similarity of each picture."""
        return outcomes["ms_ssim"].astype(np.float64)


def ms_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of pairs of pictures, float64 [pictures].

    Channels are judged apart and averaged at the end; negative contrast terms count as 0, as their powers do not exist.

    Args:
        first, second: [pictures, channels, height, width], scaled from 0 to 1.

    Raises:
        TaskError: shapes differ, or a side is below 176 pixels, too small for five scales of an 11 pixel window.
    """
    if first.shape != second.shape or first.ndim != 4:
        raise TaskError(f"pictures of shape {tuple(first.shape)} and {tuple(second.shape)} cannot be compared")
    if min(first.shape[-2:]) < WINDOW * 2 ** (len(SCALES) - 1):
        raise TaskError(f"MS-SSIM needs sides of {WINDOW * 16} pixels, found {tuple(first.shape[-2:])}")
    one, two = first.double(), second.double()
    found = torch.ones(one.shape[:2], dtype=torch.float64, device=one.device)
    for number, power in enumerate(SCALES):
        structure, whole = _ssim(one, two)
        found *= (whole if number == len(SCALES) - 1 else structure).clamp(min=0.0) ** power
        one, two = (nn.functional.avg_pool2d(x, 2) for x in (one, two))
    return found.mean(dim=1)


def _ssim(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Return the contrast-structure term and the whole similarity, averaged over places, [pictures, channels] each."""
    means = [_blurred(x) for x in (one, two)]
    spread = [_blurred(x * x) - mean**2 for x, mean in zip((one, two), means, strict=True)]
    shared = _blurred(one * two) - means[0] * means[1]
    structure = (2 * shared + 0.03**2) / (spread[0] + spread[1] + 0.03**2)
    luminance = (2 * means[0] * means[1] + 0.01**2) / (means[0] ** 2 + means[1] ** 2 + 0.01**2)
    return structure.mean(dim=(2, 3)), (luminance * structure).mean(dim=(2, 3))


def _blurred(pictures: Tensor) -> Tensor:
    """Return the Gaussian mean around each place whose window lies inside, [n, c, h - 10, w - 10]."""
    places = torch.arange(WINDOW, dtype=pictures.dtype, device=pictures.device) - WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    flat = pictures.flatten(0, 1)[:, None]
    across = nn.functional.conv2d(flat, weights.view(1, 1, 1, -1))
    blurred: Tensor = nn.functional.conv2d(across, weights.view(1, 1, -1, 1))
    return blurred.view(*pictures.shape[:2], *blurred.shape[-2:])


def bd_rate(rates: Array, qualities: Array, other_rates: Array, other_qualities: Array) -> float:
    """Return how much more rate the other curve takes at equal quality, as a share: -0.2 saves a fifth.

    Bjontegaard (VCEG-M33): a cubic of the log rate over the quality is fitted to each curve, three points get a
    parabola; their mean difference over the qualities that both reach is taken.

    Args:
        rates, qualities: [points] of the curve compared with, rates above zero, in any order.

    Raises:
        TaskError: fewer than three points, qualities that repeat, or no quality that both curves reach.
    """
    fits, ends = [], []
    for rate, quality in ((rates, qualities), (other_rates, other_qualities)):
        known, taken = np.asarray(quality, dtype=np.float64), np.asarray(rate, dtype=np.float64)
        if len(np.unique(known)) < 3 or len(known) != len(taken) or not (taken > 0).all():
            raise TaskError("a curve needs three points or more of different quality, each with a rate above zero")
        degree = min(3, len(known) - 1)
        fits.append(np.polynomial.Polynomial.fit(known, np.log(taken), degree).integ())
        ends.append((known.min(), known.max()))
    low, high = max(end[0] for end in ends), min(end[1] for end in ends)
    if not low < high:
        raise TaskError("the two curves reach no quality in common, so that their rates cannot be compared")
    means = [(fit(high) - fit(low)) / (high - low) for fit in fits]
    return float(np.expm1(means[1] - means[0]))
