"""A short embedding and cosine logits of classes: what is left of a head that was trained by its cosines."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored

SCALE = 32.0


@stored
class CosineHead(StoredModule):
    """State, float32: `project` [dim, in_features], `shift` [dim], `classes` [out_features, dim].

    inputs --project, shift--> embedding --length 1--> cosines with each class --times 32--> logits
    """

    kind = "cosine-head"
    project: Tensor
    shift: Tensor
    classes: Tensor

    def __init__(self, in_features: int, dim: int, out_features: int) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**20)
        self.dim = checks.whole("dim", dim, 1, 2**20)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        checks.elements("a cosine head", self.in_features + self.out_features, self.dim)
        self.project = nn.Parameter(torch.zeros(self.dim, self.in_features))
        self.shift = nn.Parameter(torch.zeros(self.dim))
        self.classes = nn.Parameter(torch.zeros(self.out_features, self.dim))

    def config(self) -> dict[str, Any]:
        """Return the sizes."""
        return {"in_features": self.in_features, "dim": self.dim, "out_features": self.out_features}

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the features that are searched, not yet of length 1, [*, dim], for [*, in_features]."""
        return F.linear(inputs, self.project, self.shift)

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits of classes, [*, out_features]."""
        return SCALE * F.linear(F.normalize(self.embed(input), dim=-1), F.normalize(self.classes, dim=1))

    def dequantise(self) -> Tensor:
        """Return the map from inputs to unnormalised class products, float32 [out_features, in_features]."""
        return (F.normalize(self.classes, dim=1) @ self.project).detach().float()
