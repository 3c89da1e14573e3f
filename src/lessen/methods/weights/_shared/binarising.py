"""Rounding a weight to one sign, or two where it matters, block of inputs by block of inputs.

Rules: BiLLM (Huang et al. 2024, arXiv 2402.04291). A row of weights w becomes mean + alpha sign(w - mean), with alpha
the mean of |w - mean|; a second sign does the same to what is left. Columns that stand out get two signs; the rest is
parted by magnitude, or not. The errors of a block go on to later blocks; inside a block columns do not correct each
other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.methods.weights._shared.error_feedback import Feedback
from lessen.stored.linears.billm import decode

MOST = 49
"""Salient columns that a block is tried with, from one on."""
QUANTILES = 81
"""Thresholds that are tried, from the quantile 0.1 of magnitudes to 0.9."""
SAMPLE = 2**20
"""Magnitudes that quantiles are taken of."""


@dataclass(frozen=True)
class Binarised:
    """Bool [out, in] signs and second bits, bool [in] salient columns, and fp16 levels; see `BiLLMLinear`."""

    signs: Tensor
    second: Tensor
    salient: Tensor
    levels: Tensor


def binarise(weight: Tensor, spread: Feedback, block: int, split: bool) -> Binarised:
    """Binarise a weight [out, in] under a spread in the order of the inputs."""
    left = weight.detach().float().clone()
    upper, inputs = spread.upper, left.shape[1]
    salient = torch.zeros(inputs, dtype=torch.bool, device=left.device)
    signs, second = torch.empty_like(left, dtype=torch.bool), torch.empty_like(left, dtype=torch.bool)
    levels = []
    for start in range(0, inputs, block):
        part = slice(start, min(start + block, inputs))
        corner = upper[part, part]
        salient[part] = salient_columns(left[:, part], corner.diagonal())
        signs[:, part], second[:, part], found = _block(left[:, part], salient[part], split)
        levels.append(found)
        spelled = found.float()[:, None, :].expand(-1, part.stop - start, -1)
        away = left[:, part] - decode(signs[:, part], second[:, part], salient[part], spelled)
        # of the whole block at once: E U = W - Q, which is what column after column would add up to
        errors = torch.linalg.solve_triangular(corner, away, upper=True, left=False)
        left[:, part.stop :] -= errors @ upper[part, part.stop :]
    return Binarised(signs, second, salient, torch.stack(levels, dim=1))


def salient_columns(weights: Tensor, diagonal: Tensor) -> Tensor:
    """Return bool [width]: the columns of a block [out, width] that get two signs.

    Columns are ranked by the sum of w^2 / U_ii^2; as many stand out as make the squared error of the block least.
    """
    chosen = torch.zeros(weights.shape[1], dtype=torch.bool, device=weights.device)
    ranked = torch.argsort((weights / diagonal).square().sum(dim=0), descending=True, stable=True)
    least, best = torch.inf, 0
    for count in range(1, min(MOST, len(ranked) - 1) + 1):
        strong, rest = weights[:, ranked[:count]], weights[:, ranked[count:]]
        error = float((strong - twice(strong)[0]).square().sum() + (rest - once(rest)[0]).square().sum())
        if error < least:
            least, best = error, count
    chosen[ranked[:best]] = True
    return chosen


def once(weights: Tensor, of: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return (values, alpha, mean) of rows [out, n], float32 [out, n], [out], [out]; over the entries `of`, bool."""
    mask = torch.ones_like(weights) if of is None else of.float()
    count = mask.sum(dim=1).clamp_min(1)
    mean = (weights * mask).sum(dim=1) / count
    away = weights - mean[:, None]
    alpha = (away.abs() * mask).sum(dim=1) / count
    return torch.where(away >= 0, alpha[:, None], -alpha[:, None]) + mean[:, None], alpha, mean


def twice(weights: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return values [out, n] and (alpha of the first sign, of the second, mean), [out] each."""
    first, strong, mean = once(weights)
    second, fine, more = once(weights - first)
    return first + second, (strong, fine, mean + more)


def _block(weights: Tensor, salient: Tensor, split: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return signs and second bits, bool [out, width], and levels fp16 [out, 7 or 5] of a block."""
    signs, second = torch.empty_like(weights, dtype=torch.bool), torch.zeros_like(weights, dtype=torch.bool)
    strong, rest = weights[:, salient], weights[:, ~salient]
    if split:
        large = rest.abs() > threshold(rest)
        small, big = once(rest, ~large)[1:], once(rest, large)[1:]
        means, levels = torch.where(large, big[1][:, None], small[1][:, None]), [*small, *big]
        second[:, ~salient] = large
    else:
        _, *levels = once(rest)
        means = levels[1][:, None]
    signs[:, ~salient] = rest >= means
    if strong.shape[1]:
        first, _, mean = once(strong)
        signs[:, salient] = strong >= mean[:, None]
        left = strong - first
        second[:, salient] = left >= left.mean(dim=1, keepdim=True)
        levels += twice(strong)[1]
    else:
        levels += [torch.zeros(len(weights), device=weights.device)] * 3
    return signs, second, torch.stack(levels, dim=1).half()


def threshold(weights: Tensor) -> float:
    """Return the magnitude that parts weights [out, n] in two classes with the least squared error."""
    sizes = weights.abs()
    sample = sizes.flatten()[:: -(-sizes.numel() // SAMPLE)]
    tried: list[float] = torch.quantile(sample, torch.linspace(0.1, 0.9, QUANTILES, device=sample.device)).tolist()
    return min(tried, key=lambda cut: _parted_error(weights, sizes > cut))


def _parted_error(weights: Tensor, large: Tensor) -> float:
    values = torch.where(large, once(weights, large)[0], once(weights, ~large)[0])
    return float((weights - values).square().sum())
