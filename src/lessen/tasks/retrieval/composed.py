"""The task `composed`: a reference item and a change look for the item that is the reference, so changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lessen.metrics import Outcomes
from lessen.metrics.retrieval import MRR, Recall, ranked
from lessen.task import Split, Task, TaskOptions
from lessen.train.device import device_of
from lessen.train.settings import FitSettings

ITEM, CHANGE = 32, 24
TEMPERATURE = 0.05


class ComposedOptions(TaskOptions):
    """What a study may set under `task:`."""

    items: int = Field(1000, ge=20, le=10**6, description="items that are searched, all of them in every split")
    examples: int = Field(640, ge=32, le=10**6, description="train queries; test and validation: a quarter each")
    batch: int = Field(32, ge=2, le=4096, description="queries of a batch")
    seed: int = Field(0, ge=0, le=2**31, description="of items and changes")


class ComposedNet(nn.Module):
    """items [B, 32] --`pictures`--> [B, 32];  changes [B, 24] --`text`--> [B, 32];  a query is their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures = nn.Linear(ITEM, ITEM)
        self.text = nn.Sequential(nn.Linear(CHANGE, 64), nn.ReLU(), nn.Linear(64, ITEM))

    def forward(self, items: Tensor, changes: Tensor) -> Tensor:
        """Return queries, float [B, 32], not of length 1."""
        found: Tensor = self.pictures(items) + self.text(changes)
        return found


class ComposedTask(Task):
    """Drawn items and changes; batches are ((items, changes), rows of the targets int64 [B]); the unit is a query."""

    name = "composed"
    metrics = {"recall@1": Recall(1), "recall@10": Recall(10), "mrr": MRR()}
    columns = ("recall@1", "recall@10", "mrr")
    settings = FitSettings(epochs=10, learning_rate=3e-3, patience=10)
    Options = ComposedOptions

    def __init__(self, options: ComposedOptions | None = None) -> None:
        self.options = options or ComposedOptions()
        generator = torch.Generator().manual_seed(self.options.seed)
        hidden = torch.randn(self.options.items, ITEM, generator=generator)
        self.items = hidden + 0.2 * torch.randn(hidden.shape, generator=generator)
        turn = torch.randn(CHANGE, ITEM, generator=generator) / CHANGE**0.5
        counts = self.options.examples, self.options.examples // 4, self.options.examples // 4
        self._splits: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for split, count in zip(("train", "validation", "test"), counts, strict=True):
            references = torch.randint(len(hidden), (count,), generator=generator)
            changes = 1.5 * torch.randn(count, CHANGE, generator=generator)
            far = torch.cdist(hidden[references] + changes @ turn, hidden)
            targets = far.scatter(1, references[:, None], torch.inf).argmin(dim=1)  # never the reference itself
            self._splits[split] = references, changes, targets

    def build(self) -> nn.Module:
        """Return the untrained towers."""
        return ComposedNet()

    def batches(self, split: Split, seed: int = 0) -> Iterator[Any]:
        """Yield batches; the train split is shuffled by `seed`."""
        references, changes, targets = self._splits[split]
        order = torch.arange(len(targets))
        if split == "train":
            order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
        for rows in torch.split(order, self.options.batch):
            yield (self.items[references[rows]], changes[rows]), targets[rows]

    def bank(self, model: Any) -> Tensor:
        """Return the vectors of all items by the tower of pictures, float32 [items, 32]."""
        found: Tensor = model.pictures(self.items.to(device_of(model)))
        return found

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Return the contrastive loss of queries against the targets of their batch."""
        asked = F.normalize(self.forward(model, batch), dim=1)
        held = F.normalize(model.pictures(self.items[batch[1]].to(asked.device)), dim=1)
        return F.cross_entropy(asked @ held.t() / TEMPERATURE, torch.arange(len(asked), device=asked.device))

    @torch.no_grad()
    def outcomes(self, model: Any, split: Split = "test") -> Outcomes:
        """Return where the target of each query stands among all items."""
        was_training = model.training
        model.eval()
        asked = torch.cat([self.forward(model, batch).cpu() for batch in self.batches(split)])
        held, targets = self.bank(model).cpu(), self._splits[split][2]
        model.train(was_training)
        grades = F.one_hot(targets, len(held)).double().numpy()
        cosines = F.normalize(asked, dim=1) @ F.normalize(held, dim=1).t()
        found = ranked(np.asarray(cosines), grades)
        return Outcomes({name: found[name] for name in self.columns})

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}
