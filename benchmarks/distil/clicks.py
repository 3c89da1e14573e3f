"""Clicks on MovieLens-100k for a small perceptron, which three DCNv2 teach together: the task of `distil-clicks`.

lessen run studies/distil-clicks.yaml --out out/distil-clicks
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lessen.log import SILENT, Log
from lessen.tasks.ctr.models import MODELS
from lessen.tasks.ctr.movielens import MovieLensClicks, MovieLensOptions
from lessen.train.settings import FitSettings


class Ensemble(nn.Module):
    """The mean of logits [B] of several models."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Return the mean of what the members answer."""
        return torch.stack([member(*inputs, **named) for member in self.members]).mean(dim=0)


class SmallClicks(MovieLensClicks):
    """The click task whose model is a perceptron over vectors of 4 numbers, and whose teacher is an ensemble.

    Args:
        members: models of the ensemble, each DCNv2 of the task's defaults from another seed.
    """

    name = "small-clicks"
    Options = MovieLensOptions

    def __init__(self, members: int = 3) -> None:
        super().__init__(MovieLensOptions(model="dcnv2"))
        self.members = members
        self.settings = FitSettings(epochs=20, learning_rate=4e-3, table_l2=1e-2, patience=2)

    def build(self) -> nn.Module:
        """Return the untrained perceptron."""
        return MODELS["dnn"](self.layout, dim=4, hidden=(32,))

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:
        """Return the perceptron that clicks alone have taught."""
        return self._trained(self.build, seed, log)

    @cached_property
    def ensemble(self) -> nn.Module:
        """The teacher, trained once a process."""
        made = [self._trained(super(SmallClicks, self).build, 1000 + seed, SILENT) for seed in range(self.members)]
        return Ensemble(made).eval()

    def teacher(self, seed: int) -> nn.Module:
        """Return the ensemble, in eval mode."""
        return self.ensemble

    def describe(self) -> dict[str, Any]:
        """Return the name and the members."""
        return {**super().describe(), "members": self.members}

    def _trained(self, build: Callable[[], nn.Module], seed: int, log: Log) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build()
            self.train(model, seed=seed, log=log)
        return model.eval()
