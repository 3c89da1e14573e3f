"""The task `cues`: two classes told apart by a reliable cue and by a shortcut that is easier to see.

    y = -1 or 1    (z_s, z_c) | y ~ N(y mu, Sigma)    x = alpha_s z_s w_s + alpha_c z_c w_c    w random in R^100

The set-up of "On the Foundations of Shortcut Learning" (Hermann et al., arXiv 2310.16228): predictivity is the chance
that sign z is y, availability the ratio of the alphas. The best classifier is known: linear discriminant analysis in
the latents; a perceptron that leans on the shortcut more than that has a bias. Methods are tried on it: a first layer
of rank one costs a point of accuracy and changes the cue. Width, depth and optimiser are ours, the paper names none.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lessen.metrics import ACCURACY
from lessen.task import Split, Task, TaskOptions
from lessen.train.settings import FitSettings

Floats = NDArray[np.float64]
SIDE, REACH = 60, 3.0
"""Points of the grid along each latent, and how far it reaches, in units of its mean."""


class CuesOptions(TaskOptions):
    """How easy and how reliable each cue is."""

    ratio: float = Field(64.0, gt=0, le=1e4, description="availability of the shortcut by that of the reliable cue")
    shortcut: float = Field(0.85, gt=0.5, lt=1, description="predictivity of the shortcut")
    core: float = Field(0.9, gt=0.5, lt=1, description="predictivity of the reliable cue")
    correlation: float = Field(0.6, gt=-1, lt=1, description="of both cues within a class")
    inputs: int = Field(100, ge=2, le=10_000, description="width of the inputs")
    examples: int = Field(3200, ge=64, le=10**6, description="of the train split; validation and test hold as many")
    hidden: int = Field(3, ge=0, le=20, description="hidden layers of 128 units")
    epochs: int = Field(40, ge=1, le=1000, description="of training: too few look like a bias")
    seed: int = Field(0, ge=0, le=2**31, description="of data and directions")


class CuesTask(Task):
    """Batches are (float32 [B, inputs], class int64 [B]); class 1 is y = 1."""

    name = "cues"
    metrics = {"accuracy": ACCURACY}
    Options = CuesOptions

    def __init__(self, options: CuesOptions | None = None) -> None:
        self.options = options or CuesOptions()
        # a rate that falls at the plateau of the shortcut leaves the reliable cue unlearned: that is no bias
        self.settings = FitSettings(
            epochs=self.options.epochs, learning_rate=1e-3, schedule="constant", keep="last", patience=None
        )
        normal = NormalDist()
        self.means = np.array([normal.inv_cdf(self.options.shortcut), normal.inv_cdf(self.options.core)])
        self.covariance = np.array([[1.0, self.options.correlation], [self.options.correlation, 1.0]])
        self._splits: dict[Split, tuple[Tensor, Tensor]] = {}

    def build(self) -> nn.Module:
        """Return a perceptron of ReLU layers."""
        layers: list[nn.Module] = []
        width = self.options.inputs
        for _ in range(self.options.hidden):
            layers += [nn.Linear(width, 128), nn.ReLU()]
            width = 128
        return nn.Sequential(*layers, nn.Linear(width, 2))

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of 64 of the train split, shuffled by `seed`, and of 1,024 of the others."""
        if split not in self._splits:
            generator = np.random.default_rng([self.options.seed, ("train", "validation", "test").index(split), 1])
            signs = generator.integers(0, 2, self.options.examples) * 2 - 1
            noise = generator.multivariate_normal([0.0, 0.0], self.covariance, self.options.examples)
            self._splits[split] = self.embed(signs[:, None] * self.means + noise), torch.from_numpy((signs + 1) // 2)
        inputs, target = self._splits[split]
        order = torch.arange(len(target))
        if split == "train":
            order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
        for rows in torch.split(order, 64 if split == "train" else 1024):
            yield inputs[rows], target[rows]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy."""
        return functional.cross_entropy(self.forward(model, batch), batch[1])

    def embed(self, latents: Floats) -> Tensor:
        """Return inputs [n, inputs] of latents [n, 2]: the shortcut first."""
        generator = np.random.default_rng([self.options.seed, 0])
        ways = generator.normal(size=(2, self.options.inputs)) / np.sqrt(self.options.inputs)
        scale = np.array([np.sqrt(self.options.ratio), 1.0 / np.sqrt(self.options.ratio)])
        return torch.from_numpy(((latents * scale) @ ways).astype(np.float32))

    def grid(self) -> Floats:
        """Return 60 x 60 latents that cross both cues, [3600, 2]."""
        along = [np.linspace(-REACH * mean, REACH * mean, SIDE) for mean in self.means]
        return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, 2)

    def crossed(self) -> dict[str, tuple[list[Tensor], NDArray[np.int64], NDArray[np.int64]]]:
        """Return inputs in batches, the class that the shortcut says and that the reliable cue says, by probe."""
        points = self.grid()
        found = {}
        for name, latents in (("grid", points), ("test inputs", self._latents_of_test())):
            said = (np.sign(latents) > 0).astype(np.int64)
            found[name] = (list(torch.split(self.embed(latents), 1024)), said[:, 0], said[:, 1])
        return found

    def best(self) -> float:
        """Return the reliance of linear discriminant analysis on the grid: what a bias is measured from."""
        points = self.grid()
        answer = np.sign(points @ np.linalg.solve(self.covariance, self.means))
        return float((answer * np.sign(points[:, 0])).mean() - (answer * np.sign(points[:, 1])).mean())

    def _latents_of_test(self) -> Floats:
        generator = np.random.default_rng([self.options.seed, 3, 1])
        signs = generator.integers(0, 2, self.options.examples) * 2 - 1
        noise = generator.multivariate_normal([0, 0], self.covariance, len(signs))
        return np.asarray(signs[:, None] * self.means + noise)

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}

    def notes(self) -> list[str]:
        """Say what the best classifier leans on."""
        return [f"Of the grid the best classifier's reliance on the shortcut is {self.best():+.2f}."]
