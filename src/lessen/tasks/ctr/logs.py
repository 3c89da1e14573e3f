"""Clicks from a team's own logs: a folder that `encode_logs` wrote, any model, streamed from disk."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from lessen.data.columns import Batch
from lessen.data.folder import Dataset
from lessen.errors import ConfigError, NonFiniteError, TaskError, nearest
from lessen.log import SILENT, Log
from lessen.metrics import GAUC, Metric, StreamedClicks
from lessen.task import Split, TaskOptions
from lessen.tasks.ctr.base import EVALUATION_BATCH, ClickTask
from lessen.tasks.ctr.models import MODELS, ModelName
from lessen.train.settings import FitSettings

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class LogOptions(TaskOptions):
    """Which data, which model, how it is trained. Defaults are those of the BARS benchmark."""

    data: str = Field(description="folder of an encoded data set")
    model: ModelName = Field("dcnv2", description="reference model")
    arguments: dict[str, Any] = Field({}, description="arguments of the model, such as hidden: [400, 400, 400]")
    dim: int = Field(10, ge=1, le=1024, description="width of the embedding vectors")
    batch_size: int = Field(4096, ge=2, description="rows of a training step")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam")
    table_l2: float = Field(0.0, ge=0, description="lambda/2 * squared norm of the tables, added to the mean loss")
    table_updates: Literal["dense", "lazy-adam", "rowwise-adagrad"] = Field(
        "dense", description="dense costs what the tables hold, the others what a batch touches"
    )
    epochs: int = Field(100, ge=1, description="at most")
    patience: int = Field(2, ge=1, description="epochs without improvement before training stops")


class LogClicks(ClickTask):
    """An encoded data set as a task; batches are read from disk, so that memory holds one window of rows.

    Labels are [B, 2] where the schema has a weight, which then weighs the training loss and every metric; `baselines`
    are fitted and judged without it. AUC inside groups is a further metric of the test split where it has a group.

    Raises:
        DataError: the folder is no whole data set.
        ConfigError: the model does not take one of `arguments`.
    """

    name = "ctr-logs"
    Options: ClassVar[type[TaskOptions]] = LogOptions

    def __init__(self, options: LogOptions) -> None:
        self.options = options
        self.dataset = Dataset(Path(options.data))
        self.batch_size = options.batch_size
        self.settings = FitSettings(
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            table_l2=options.table_l2,
            table_updates=options.table_updates,
            patience=options.patience,
        )
        arguments = {"dim": options.dim, "std": 1e-4, **options.arguments}
        _check_arguments(options.model, arguments)
        super().__init__(options.model, self.dataset.layout, {}, arguments)
        self.metrics = {**ClickTask.metrics, **self._group_metric()}

    def _group_metric(self) -> dict[str, Metric]:
        """Return gAUC where the schema has a group and some group of the test split holds both classes."""
        if not self.dataset.schema.of_kind("group") or not self.dataset.rows["test"]:
            return {}
        groups, labels = (np.array(self.dataset.array("test", name)) for name in ("group", "label"))
        _, place = np.unique(groups, return_inverse=True)
        positives, count = np.bincount(place, labels), np.bincount(place)
        mixed = bool(((positives > 0) & (positives < count)).any())
        return {"gauc": GAUC} if mixed else {}

    def groups(self, split: Split) -> NDArray[Any] | None:
        """Return the group of each row where the schema has one."""
        return np.array(self.dataset.array(split, "group")) if self.dataset.schema.of_kind("group") else None

    def batches(self, split: Split, seed: int = 0) -> Iterable[Batch]:
        """Yield `({"ids": int32 [B, columns], ...}, label float32 [B] or [B, 2])`; train is shuffled by `seed`."""
        if split == "train":
            return self.dataset.stream(split, self.batch_size, seed)
        return self.dataset.stream(split, EVALUATION_BATCH)

    def score(self, model: nn.Module, split: Split = "validation") -> float:
        """Return the AUC of a split, streamed: memory holds no scores beyond a fixed number, whatever the rows.

        Raises:
            TaskError: the split is empty or holds one class.
            NonFiniteError: the model gave NaN or infinity.
        """
        was_training = model.training
        model.eval()
        stream = StreamedClicks()
        with torch.no_grad():
            for batch in self.batches(split):
                scores = self.predict(model, batch).cpu().numpy()
                if not np.isfinite(scores).all():
                    raise NonFiniteError(f"the model gave NaN or infinity for {split} scores")
                stream.add(scores, batch[1].numpy())
        model.train(was_training)
        if not stream.examples:
            raise TaskError(f"task {self.name!r} has an empty {split} split; give it rows or choose another split")
        return stream.result()["auc"]

    def baselines(self, log: Log = SILENT) -> dict[str, dict[str, Any]]:
        """Return test quality of simple models; loads all splits into memory."""
        self.splits = {split: self.dataset.columns(split) for split in SPLITS}
        return super().baselines(log)

    def describe(self) -> dict[str, Any]:
        """Return the name and the options."""
        return {"name": self.name, **self.options.model_dump()}

    def fingerprint(self) -> str:
        """Return the digest of the sources, the schema and the split rule."""
        return self.dataset.fingerprint


def _check_arguments(model: ModelName, arguments: dict[str, Any]) -> None:
    known = set(inspect.signature(MODELS[model]).parameters) - {"layout"}
    for name in arguments:
        if name not in known:
            raise ConfigError(f"the model {model} takes no argument {name!r}; {nearest(name, known)}")
