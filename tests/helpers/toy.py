"""A user's model and task, as small as they come: what the tests of the spine compress, measure and save."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lessen.metrics import AUC, LOGLOSS
from lessen.task import Split, Task
from lessen.train.settings import FitSettings


class ToyNet(nn.Module):
    """Two embeddings and a small perceptron, called with ids [batch, 2]."""

    def __init__(self, rows: int = 64, dim: int = 8) -> None:
        super().__init__()
        self.left = nn.Embedding(rows, dim)
        self.right = nn.Embedding(rows, dim)
        self.hidden = nn.Linear(2 * dim, 16)
        self.out = nn.Linear(16, 1)

    def forward(self, ids: Tensor) -> Tensor:
        joined = torch.cat([self.left(ids[:, 0]), self.right(ids[:, 1])], dim=1)
        return self.out(torch.relu(self.hidden(joined)))[:, 0]


class ToyTask(Task):
    """Labels are drawn from a planted interaction of two ids."""

    name = "toy"
    metrics = {"auc": AUC, "logloss": LOGLOSS}
    settings = FitSettings(epochs=8, learning_rate=0.02)

    def __init__(self, rows: int = 64, examples: int = 8000, batch: int = 250) -> None:
        generator = np.random.default_rng(0)
        self.rows, self.batch = rows, batch
        ids = generator.integers(0, rows, size=(examples, 2))
        effect = generator.normal(size=(2, rows))
        logit = 2 * effect[0][ids[:, 0]] * np.sign(effect[1][ids[:, 1]])
        label = generator.random(examples) < 1 / (1 + np.exp(-logit))
        self.ids, self.label = torch.from_numpy(ids), torch.from_numpy(label.astype(np.float32))
        edge = [0, examples // 2, 3 * examples // 4, examples]
        self.parts = {"train": (edge[0], edge[1]), "validation": (edge[1], edge[2]), "test": (edge[2], edge[3])}

    def build(self) -> nn.Module:
        return ToyNet(self.rows)

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        start, end = self.parts[split]
        order = torch.arange(start, end)
        if split == "train":
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
        for rows in order.split(self.batch):
            yield self.ids[rows], self.label[rows]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])
