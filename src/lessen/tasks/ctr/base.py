"""What every click task shares: columnar splits, shuffled gathers, the logit loss, AUC and log loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lessen.data.columns import Batch, Columns, Layout
from lessen.log import SILENT, Log
from lessen.metrics import AUC, LOGLOSS, Outcomes, bootstrap_weights
from lessen.task import Split, Task
from lessen.tasks.ctr.baselines import baseline_scores
from lessen.tasks.ctr.models import MODELS, ModelName

EVALUATION_BATCH = 4096


class ClickTask(Task):
    """A task over three `Columns`; subclasses load them and say which model and settings they want."""

    metrics = {"auc": AUC, "logloss": LOGLOSS}
    batch_size: int = 1024

    def __init__(
        self, model: ModelName, layout: Layout, splits: dict[Split, Columns], arguments: dict[str, Any]
    ) -> None:
        self.model, self.layout, self.splits, self.arguments = model, layout, splits, arguments

    def build(self) -> nn.Module:
        """Return the untrained reference model."""
        return MODELS[self.model](self.layout, **self.arguments)

    def batches(self, split: Split, seed: int = 0) -> Iterable[Batch]:
        """Yield `({"ids": int32 [B, columns], ...}, label float32 [B])`; the train split is shuffled by `seed`."""
        columns = self.splits[split]
        if split != "train":
            return columns.batches(EVALUATION_BATCH)
        order = torch.randperm(len(columns), generator=torch.Generator().manual_seed(seed))
        return columns.batches(self.batch_size, order)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean binary cross entropy of the logits, weighted where labels [B, 2] carry weights.

        A weight of k counts an example k times: the sum of weighted losses over the sum of the weights of the batch.
        """
        logits, target = self.forward(model, batch), batch[1]
        if target.ndim == 1:
            return nn.functional.binary_cross_entropy_with_logits(logits, target)
        label, weight = target.unbind(1)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
        return (losses * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)

    def slices(self, split: Split) -> Mapping[str, NDArray[np.int64]]:
        """Return the id of each field with one id an example, numbered from the field's first table row."""
        columns = self.splits[split]
        return {
            field.name: columns.ids[:, field.start].numpy().astype(np.int64) - columns.layout.segment(field.name).start
            for field in columns.layout.single
        }

    def baselines(self, log: Log = SILENT) -> dict[str, dict[str, Any]]:
        """Return test quality of simple models on the same features: `{name: {metric: value, metric_ci: [low, high]}}`.

        Raises:
            MissingExtraError: scikit-learn is not installed.
        """
        labels = self.splits["test"].label.numpy()
        return {name: _judged(scores, labels) for name, scores in baseline_scores(self.splits, log).items()}


def _judged(scores: NDArray[np.float64], labels: NDArray[np.float32]) -> dict[str, Any]:
    """Return AUC and log loss with 95 % intervals from 200 bootstrap resamples of the examples."""
    outcomes, weights = Outcomes({"score": scores, "target": labels}), bootstrap_weights(len(labels), 200)
    values: dict[str, Any] = {}
    for name, metric in ClickTask.metrics.items():
        values[name] = metric(outcomes)
        values[f"{name}_ci"] = np.quantile(metric.weighted(outcomes, weights), (0.025, 0.975)).tolist()
    return values
