"""A classifier whose weights are the corners of a regular simplex: fixed, never stored, the same in every version."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored


def simplex(classes: int) -> Tensor:
    """Return the corners of a regular simplex, float64 [K, K - 1]: unit length, products -1 / (K - 1), sum zero.

    All but the last are the unit vectors, the last (1 - sqrt(K)) / (K - 1) in every place; all less their mean, and
    made of length 1 (Pernici et al. 2021).
    """
    width = classes - 1
    rows = torch.cat(
        [
            torch.eye(width, dtype=torch.float64),
            torch.full((1, width), (1 - math.sqrt(1 + width)) / width, dtype=torch.float64),
        ]
    )
    return nn.functional.normalize(rows - rows.mean(dim=0), dim=1)


@stored
class SimplexHead(StoredModule):
    """State: `project` float32 [classes - 1, in_features]; answers [*, out_features].

    Class c has the corner `classes - 1 - c`, filled from the end, so that later classes find their corner free; the
    products with corners are two sums, so that no corner is held.
    """

    kind = "simplex-head"
    project: Tensor

    def __init__(self, in_features: int, out_features: int, classes: int) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**20)
        self.out_features = checks.whole("out_features", out_features, 1, 2**20)
        self.classes = checks.whole("classes", classes, max(2, self.out_features), 2**20)
        checks.elements("a simplex head", self.classes, self.in_features)
        self.project = nn.Parameter(torch.zeros(self.classes - 1, self.in_features))

    def config(self) -> dict[str, Any]:
        """Return the sizes."""
        return {"in_features": self.in_features, "out_features": self.out_features, "classes": self.classes}

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the features that are searched, not yet of length 1, [*, classes - 1], for [*, in_features]."""
        return nn.functional.linear(inputs, self.project)

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits of the first classes, [*, out_features]."""
        return self.logits(self.embed(input))

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [*, out_features] of features [*, classes - 1]: products with the corners of each class."""
        width = self.classes - 1
        last = (1 - math.sqrt(1 + width)) / width
        mean = (1 + last) / self.classes
        total = features.sum(dim=-1, keepdim=True)
        length = math.sqrt((1 - mean) ** 2 + (width - 1) * mean**2)
        corners = torch.cat(
            [(features - mean * total) / length, math.copysign(1, last - mean) * total / width**0.5], -1
        )
        return corners.flip(-1)[..., : self.out_features]

    def dequantise(self) -> Tensor:
        """Return the dense weight of the logits, float32 [out_features, in_features]."""
        corners = simplex(self.classes).flip(0)[: self.out_features].to(self.project.dtype)
        return (corners @ self.project.detach()).float()
