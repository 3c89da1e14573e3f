"""MadaCos: a cosine classifier whose scale and margin follow each batch, so that its median example stays equally hard.

Source: CFCD, Zhu et al., ICCV 2023, section 3.2. With c the median cosine of a batch to its own classes (the lower of
two middle ones, an example's), alpha the probability that this example shall have, and B the sum over its other classes
of exp(s cos),

    s = max(32, ln(9999999 (1 - alpha) / alpha) / (1 - c)),    m = max(0, c - ln(B alpha / (1 - alpha)) / s),

and logits s cos, s (cos - m) for the own class. No gradient flows through s and m. The constant stands for a very large
number of classes, as published, whatever the number is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.errors import ConfigError

CLASSES = 9_999_999.0
LEAST = 32.0


class MadaCos(nn.Module):
    """Cosine logits [B, classes] of features [B, dim] with the margin of `labels` in training."""

    def __init__(self, dim: int, classes: int, alpha: float = 0.02) -> None:
        super().__init__()
        if not 0 < alpha < 1 or dim < 1 or classes < 2:
            raise ConfigError(f"dim = {dim}, classes = {classes}, alpha = {alpha}: give 1, 2 or more, 0 < alpha < 1")
        self.alpha = alpha
        self.weight = nn.Parameter(torch.empty(classes, dim).uniform_(-(dim**-0.5), dim**-0.5))

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits; without labels, or in eval mode, scaled cosines alone."""
        cosines = F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))
        if labels is None:
            return LEAST * cosines
        scale, margin = self.settled(cosines.detach(), labels)
        own = F.one_hot(labels, cosines.shape[1])
        return scale * (cosines - (margin if self.training else 0.0) * own)

    def settled(self, cosines: Tensor, labels: Tensor) -> tuple[float, float]:
        """Return scale and margin of a batch: cosines [B, classes], labels int64 [B]."""
        own = cosines.gather(1, labels[:, None])[:, 0]
        middle, place = (one.item() for one in own.median(dim=0))
        odds = math.log((1 - self.alpha) / self.alpha)
        scale = max(LEAST, (math.log(CLASSES) + odds) / max(1e-6, 1 - middle))
        others = cosines[int(place)].masked_fill(F.one_hot(labels[int(place)], cosines.shape[1]).bool(), float("-inf"))
        total = float((scale * others.double()).logsumexp(dim=0))
        return scale, max(0.0, middle - (total - odds) / scale)
