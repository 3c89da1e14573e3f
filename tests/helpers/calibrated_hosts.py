"""Tiny hosts with random inputs as calibration data."""

from __future__ import annotations

import torch

from host_models import inputs
from lessen.task import Task, call_model


class Host(Task):
    """The host `name` with a few batches of random inputs; the loss is the mean square of what it answers."""

    metrics = {}

    def __init__(self, name: str, count: int = 4) -> None:
        self.host, self.name, self.count = name, name, count

    def build(self):
        raise NotImplementedError

    def batches(self, split, seed=0):
        return [(inputs(self.host, seed=number), torch.zeros(2)) for number in range(self.count)]

    def inputs(self, batch):
        return batch[0]

    def forward(self, model, batch):
        return call_model(model, batch[0])

    def loss(self, model, batch):
        return self.forward(model, batch).float().square().mean()
