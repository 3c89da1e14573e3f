"""What a model learns when its tables do not: the least that a method that trains tables has to beat."""

from __future__ import annotations

from functools import lru_cache

import torch

from lessen.methods.sites import TABLES
from lessen.task import Task
from lessen.train.settings import FitSettings

MARGIN = 0.01
"""Floors of three seeds lie within 0.015 of each other."""


@lru_cache
def _frozen_score(kind: type[Task], settings: FitSettings) -> float:
    task = kind().view(settings=settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.build()
        for module in model.modules():
            if isinstance(module, TABLES):
                module.requires_grad_(False)
        task.train(model)
    return task.score(model, "train")


def assert_tables_learned(model: torch.nn.Module, task: Task) -> None:
    """Fail unless the model is better on the train split than one trained as long with its tables as they were built."""
    found, floor = task.score(model, "train"), _frozen_score(type(task), task.settings)
    assert found > floor + MARGIN, f"{found:.3f} is not above {floor:.3f}, which frozen tables reach"
