"""A task for the tiny hosts: any answer has a loss that is a sum over rows."""

from __future__ import annotations

import torch

from host_models import inputs
from lessen.task import call_model
from lessen.testing.toys import TableTask


class Words(TableTask):
    """A tiny host whose answers are judged by a fixed random direction, a part of the loss for each row."""

    def __init__(self, name="llama", rows=3):
        self.host, self.name, self.rows = name, name, rows

    def batches(self, split, seed=0):
        for number in range(2):
            given = inputs(self.host, batch=self.rows, seed=number)
            yield given, given.get("input_ids")

    def inputs(self, batch):
        return batch[0]

    def forward(self, model, batch):
        return call_model(model, batch[0])

    def loss(self, model, batch):
        answers = self.forward(model, batch).float()
        draw = torch.Generator().manual_seed(1)
        return (answers.log_softmax(-1) * torch.randn(answers.shape, generator=draw)).mean()
