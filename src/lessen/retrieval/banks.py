"""Training queries against a bank of all targets, encoded once: SPN4CIR's second stage.

Source: Feng et al. 2024, arXiv 2404.11317. The tower of targets is frozen, so that all of them are negatives; gradients
reach the query alone.
"""

from __future__ import annotations

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
