"""Two small rules: training queries against a bank of all targets, and fusing the features of two towers.

bank_loss   SPN4CIR's second stage (Feng et al. 2024, arXiv 2404.11317): the tower of targets is frozen, so that every
            target was encoded once and all of them are negatives; gradients reach the query alone.
fused       SD-DINO's rule (Zhang et al. 2023, arXiv 2305.15347): each tower's features made of length 1, weighed by
            alpha and 1 - alpha, set side by side; the cosine is then the weighed mean of both cosines.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.errors import ConfigError, DataError


def bank_loss(
    queries: Tensor, bank: Tensor, targets: Tensor, temperature: float = 0.02, negatives: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Return the cross-entropy of each query's own target among the bank, a scalar.

    Args:
        queries: float [B, d], of any length, with gradients; bank: float [N, d], no gradient flows into it.
        targets: rows of the bank, int64 [B]; negatives: rows drawn as negatives, the same for all; None for all rows.

    Raises:
        DataError: a target is not in the bank. ConfigError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature = {temperature} is not accepted: it must be above 0")
    if int(targets.min()) < 0 or int(targets.max()) >= len(bank):
        raise DataError(f"targets lie between {int(targets.min())} and {int(targets.max())}; the bank has {len(bank)}")
    unit, held = F.normalize(queries, dim=1), F.normalize(bank.detach(), dim=1)
    if negatives is None:
        return F.cross_entropy(unit @ held.t() / temperature, targets)
    drawn = torch.randint(0, len(bank), (negatives,), generator=generator)
    others = (unit @ held[drawn].t()).masked_fill(drawn[None] == targets[:, None], float("-inf"))
    own = (unit * held[targets]).sum(dim=1, keepdim=True)
    return F.cross_entropy(torch.cat([own, others], dim=1) / temperature, torch.zeros_like(targets))


def fused(left: Tensor, right: Tensor, alpha: float = 0.5) -> Tensor:
    """Return features of length 1, [n, a + b], of those of two towers, [n, a] and [n, b].

    Raises:
        ConfigError: alpha is not between 0 and 1. DataError: they are not of the same examples.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha = {alpha} is not accepted: it must lie between 0 and 1")
    if len(left) != len(right):
        raise DataError(f"features of {len(left)} and {len(right)} examples cannot be fused")
    parts = [
        F.normalize(left.float(), dim=1) * math.sqrt(alpha),
        F.normalize(right.float(), dim=1) * math.sqrt(1 - alpha),
    ]
    return torch.cat(parts, dim=1)
