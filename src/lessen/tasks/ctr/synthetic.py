"""A small click task with a known best AUC: Zipf ids, planted first-order weights and pairwise interactions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from lessen.data.columns import Columns, IdField, Layout
from lessen.metrics import AUC
from lessen.stored.fields import Segment
from lessen.task import Split, TaskOptions
from lessen.tasks.ctr.base import ClickTask
from lessen.tasks.ctr.models import MODELS
from lessen.train.settings import FitSettings

Floats = NDArray[np.float64]


class SyntheticOptions(TaskOptions):
    """Size and difficulty of the synthetic task; `seed` makes the data, not the training."""

    rows: int = Field(20_000, ge=30, description="examples of all splits together, cut 70/15/15")
    fields: int = Field(6, ge=2, le=64, description="fields that carry signal")
    noise_fields: int = Field(0, ge=0, le=64, description="further fields that carry none")
    rows_per_field: int = Field(100, ge=2, description="vocabulary of each field; its first table row is unseen ids")
    strength: float = Field(1.0, gt=0, description="scale of the planted logits")
    seed: int = Field(0, ge=0, description="seed of the data")
    model: Literal["dcnv2", "deepfm"] = Field("deepfm", description="reference model")
    dim: int = Field(8, ge=1, description="width of the embedding vectors")


class SyntheticClicks(ClickTask):
    """label ~ Bernoulli(sigmoid(bias + sum_i w_i[id] + sum over neighbouring fields <u_i[id], v_j[id]>)).

    `best_auc` is the AUC of the true logits on the test labels: no model can beat it except by chance.
    """

    name = "ctr-synthetic"
    Options: ClassVar[type[TaskOptions]] = SyntheticOptions
    batch_size = 256
    settings = FitSettings(epochs=8, learning_rate=1e-2, table_l2=1e-3, patience=1)

    def __init__(self, options: SyntheticOptions | None = None) -> None:
        self.options = options or SyntheticOptions()
        layout = _layout(self.options.fields + self.options.noise_fields, self.options.rows_per_field)
        ids, logits = _draw(self.options)
        generator = np.random.default_rng([self.options.seed, 1])
        label = (generator.random(len(logits)) < 1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
        everything = Columns(torch.from_numpy(ids), torch.from_numpy(label), layout)
        cuts = [int(0.7 * len(ids)), int(0.85 * len(ids)), len(ids)]
        splits: dict[Split, Columns] = {
            "train": everything.select(np.arange(cuts[0])),
            "validation": everything.select(np.arange(cuts[0], cuts[1])),
            "test": everything.select(np.arange(cuts[1], cuts[2])),
        }
        super().__init__(self.options.model, layout, splits, _arguments(self.options))
        self.best_auc = AUC(logits[cuts[1] :], label[cuts[1] :])

    @classmethod
    def architecture(cls, options: SyntheticOptions) -> Callable[[], nn.Module]:
        """Return what builds the model of these options; no data are drawn."""
        layout = _layout(options.fields + options.noise_fields, options.rows_per_field)
        return lambda: MODELS[options.model](layout, **_arguments(options))

    def describe(self) -> dict[str, Any]:
        """Return the name and the options."""
        return {"name": self.name, **self.options.model_dump()}


def _arguments(options: SyntheticOptions) -> dict[str, Any]:
    return {"dim": options.dim, "hidden": (32, 16), "std": 0.1}


def _layout(fields: int, rows: int) -> Layout:
    """One categorical column a field; `rows` known ids and one row for unseen ids each, padding in row 0."""
    segments = tuple(Segment(f"field{i}", 1 + i * (rows + 1), rows + 1) for i in range(fields))
    return Layout(tuple(IdField(s.name, "categorical", i, 1, s.name) for i, s in enumerate(segments)), segments)


def _draw(options: SyntheticOptions) -> tuple[NDArray[np.int32], Floats]:
    """Return global ids [rows, fields] and true logits [rows]."""
    generator = np.random.default_rng([options.seed, 0])
    count, rows = options.fields + options.noise_fields, options.rows_per_field
    popularity = 1.0 / np.arange(1, rows + 1)
    local = generator.choice(rows, size=(options.rows, count), p=popularity / popularity.sum())
    weight = generator.normal(0.0, 0.5, (options.fields, rows))
    left, right = generator.normal(0.0, 1.0, (2, options.fields, rows, 2))
    logits = np.full(options.rows, -0.5)
    for i in range(options.fields):
        logits += weight[i, local[:, i]]
        if i % 2 and options.fields > 1:
            logits += (left[i - 1, local[:, i - 1]] * right[i, local[:, i]]).sum(axis=1)
    offsets = 2 + np.arange(count) * (rows + 1)
    return (local + offsets).astype(np.int32), options.strength * logits
