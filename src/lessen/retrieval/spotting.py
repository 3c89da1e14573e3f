"""The head that finds words in pictures (FDP): maps pooled with an eye on text, and a probe with one key.

    maps --three 1 x 1 convolutions--> scores of cells --sigmoid, added to what the mean attends to--.
    maps, their mean, positions ---------------------------------------------attention pooling--> g --> g + probe(g)

Source: FDP, Zeng et al., ACM MM 2024, arXiv 2408.00441. `FoldedHead` is the same function in eval mode with a fraction
of the numbers: see `folds`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.retrieval.folds import FoldedProbe, focused_pool, folded_convolutions
from lessen.stored import checks
from lessen.stored.base import StoredModule, stored


class FocusedHead(nn.Module):
    """Maps float [B, width, high, wide] to one vector a picture, [B, width]."""

    def __init__(self, width: int, high: int, wide: int, heads: int = 4, probes: int = 8) -> None:
        super().__init__()
        self.width, self.high, self.wide, self.heads = width, high, wide, heads
        self.position = nn.Parameter(torch.randn(1 + high * wide, width) * width**-0.5)
        self.areas = nn.Sequential(
            nn.Conv2d(width, width, 1), nn.Conv2d(width, max(1, width // 2), 1), nn.Conv2d(max(1, width // 2), 1, 1)
        )
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.asked = nn.Parameter(torch.randn(width))
        self.probe_value = nn.Linear(width, probes * width, bias=False)
        self.probe_out = nn.Linear(probes * width, width)
        self.norm = nn.LayerNorm(width)

    def scores(self, maps: Tensor) -> Tensor:
        """Return what says where text is, before its sigmoid, [B, high * wide]."""
        found: Tensor = self.areas(maps).flatten(1)
        return found

    def forward(self, maps: Tensor) -> Tensor:
        """Return the vectors of pictures."""
        pooled = focused_pool(
            with_mean(maps, self.position), self.scores(maps), self.query, self.key, self.value, self.out, self.heads
        )
        probed: Tensor = self.norm(pooled + self.probe_out(self.probe_value(self.asked)))
        return pooled + probed


def with_mean(maps: Tensor, position: Tensor) -> Tensor:
    """Return tokens [B, 1 + cells, width] of maps: their mean, then each cell, positions added."""
    cells = maps.flatten(2).transpose(1, 2)
    return torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1) + position


@stored
class FoldedHead(StoredModule):
    """State, float32: `position` [1 + cells, width], `score` [width], `offset` [1], `constant` [width], the four layers
    of the pooling and the norm's gain and bias.
    """

    kind = "folded-head"
    score: Tensor
    offset: Tensor
    constant: Tensor

    def __init__(self, width: int, high: int, wide: int, heads: int) -> None:
        super().__init__()
        self.width = checks.whole("width", width, 1, 2**16)
        self.high, self.wide = checks.whole("high", high, 1, 2**12), checks.whole("wide", wide, 1, 2**12)
        self.heads = checks.whole("heads", heads, 1, self.width)
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        checks.elements("a folded head", self.width, max(self.width, 1 + self.high * self.wide))
        self.position = nn.Parameter(torch.zeros(1 + self.high * self.wide, self.width))
        self.score, self.offset = nn.Parameter(torch.zeros(self.width)), nn.Parameter(torch.zeros(1))
        self.constant = nn.Parameter(torch.zeros(self.width))
        with torch.random.fork_rng(devices=[]):  # layers draw their start, which is never used
            self.query, self.key, self.value, self.out = (nn.Linear(self.width, self.width) for _ in range(4))
        self.norm = nn.LayerNorm(self.width)

    @classmethod
    @torch.no_grad()
    def of(cls, head: FocusedHead) -> FoldedHead:
        """Return the head folded: one row of scores for three convolutions, one vector for the probe's block."""
        made = cls(head.width, head.high, head.wide, head.heads)
        areas = folded_convolutions([one for one in head.areas if isinstance(one, nn.Conv2d)])
        probe = FoldedProbe.of(head.asked, head.probe_value, head.probe_out, head.norm)
        assert areas.bias is not None
        made.score.copy_(areas.weight.flatten())
        made.offset.copy_(areas.bias)
        made.constant.copy_(probe.constant)
        made.position.copy_(head.position)
        for name in ("query", "key", "value", "out", "norm"):
            made.get_submodule(name).load_state_dict(head.get_submodule(name).state_dict())
        trains = {name: one.requires_grad for name, one in head.named_parameters()}
        for name, one in made.named_parameters():  # what was frozen stays frozen
            one.requires_grad_(trains.get(name, any(trains.values())))
        return made.to(head.position.device).train(head.training)

    def config(self) -> dict[str, Any]:
        """Return the sizes."""
        return {"width": self.width, "high": self.high, "wide": self.wide, "heads": self.heads}

    def scores(self, maps: Tensor) -> Tensor:
        """Return what says where text is, before its sigmoid, [B, high * wide]."""
        return torch.einsum("bchw,c->bhw", maps, self.score).flatten(1) + self.offset

    def forward(self, maps: Tensor) -> Tensor:
        """Return the vectors of pictures, [B, width], for maps [B, width, high, wide]."""
        pooled = focused_pool(
            with_mean(maps, self.position), self.scores(maps), self.query, self.key, self.value, self.out, self.heads
        )
        probed: Tensor = self.norm(pooled + self.constant)
        return pooled + probed

    def dequantise(self) -> Tensor:
        """Return the row of scores, float32 [1, width]."""
        return self.score.detach().float()[None]
