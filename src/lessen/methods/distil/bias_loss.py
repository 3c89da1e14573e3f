"""Bias loss: examples whose last maps vary little weigh less, for small convolutional networks."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lessen.architectures.stages import find_stages
from lessen.errors import TaskError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Trained
from lessen.task import Task, main_tensor
from lessen.train.device import device_of, to_device
from lessen.train.hooks import Hook
from lessen.train.taps import OUTPUT, Taps
from lessen.train.teachers import evaluating

Range = Literal["global", "local", "average"]


class BiasLoss(Trained):
    """Train on the mean of z CE, with z = exp(alpha u) - beta of each example and u the variance of its last map.

    Bias Loss for Mobile Neural Networks, ICCV 2021 (arXiv 2107.11170). u is brought to about [0, 1]: `local` by the
    batch's least and largest variance; `global`, the published default, by the least of all batches so far and the
    batch's range, so that it may exceed 1; `average`, ours, by moving averages of both. The mean of z is below 1, which
    lowers the learning rate without saying so: `control: true` gives every example the batch's mean z instead, and is
    what to compare with. Differences: where all variances of a batch are equal u is 0 (published: NaN); variances are
    taken in float32; the task's own loss is left out, so that label smoothing in it does nothing; soft labels do.
    """

    card = Card(
        name="bias-loss",
        family="distil",
        summary="Train a convolutional network with less weight on examples whose last maps vary little.",
        acts_on=ACTS_ON,
        source="ICCV 2021, arXiv 2107.11170",
        needs=NEEDS,
        claims=CLAIMS,
    )
    alpha: float = Field(0.3, ge=0, le=10, description="slope of the exponent; 0: every example weighs 1 - beta")
    beta: float = Field(0.3, ge=0, lt=1, description="subtracted from every weight")
    range: Range = Field("global", description="how variances are brought to [0, 1]")
    layer: str | None = Field(None, description="path of the module whose maps are read; none: the last stage")
    control: bool = Field(False, description="give each example the mean weight of its batch")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train and return the model.

        Raises:
            TaskError: the task cannot train or has no classes, or the layer gives no maps.
            InputError: no stage is found.
        """
        student, settle = self._student(model, task, context)
        layer = self.layer or _last(student, task)
        context.findings["layer"] = layer
        retrain.train(student, self.paced(task), context, epochs=self.epochs, hooks=(_Weighed(self, layer, task),))
        settle()
        return student


def _last(model: nn.Module, task: Task) -> str:
    batch = task.example_batch()
    with evaluating(model):
        return find_stages(model, lambda one: task.forward(one, to_device(batch, device_of(one))))[-1]


def spread(maps: Tensor) -> Tensor:
    """Return the unbiased variance of all values of each example, float32 [B], without gradient.

    Raises:
        TaskError: the features are no maps [B, C, H, W].
    """
    if maps.ndim != 4:
        raise TaskError(
            f"bias-loss reads maps [rows, channels, height, width], and the layer gives {tuple(maps.shape)}; name "
            "another `layer`"
        )
    return maps.detach().float().flatten(1).var(dim=1)


def weights(variances: Tensor, low: Tensor, width: Tensor, alpha: float, beta: float) -> Tensor:
    """Return z = exp(alpha (v - low) / width) - beta; u is 0 where the width is 0."""
    return torch.exp(alpha * torch.where(width > 0, (variances - low) / width, torch.zeros_like(variances))) - beta


class Extent(nn.Module):
    """What is remembered of variances: the least of all, and moving averages of least and largest."""

    least: Tensor
    means: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("least", torch.tensor(torch.inf))
        self.register_buffer("means", torch.full((2,), torch.nan))

    def forward(self, variances: Tensor, how: Range) -> tuple[Tensor, Tensor]:
        """Return (low, width) for a batch, and remember it."""
        low, high = variances.min(), variances.max()
        self.least.copy_(torch.minimum(self.least, low))
        seen = torch.stack([low, high])
        self.means.copy_(torch.where(self.means.isnan(), seen, 0.9 * self.means + 0.1 * seen))
        if how == "local":
            return low, high - low
        if how == "average":
            return self.means[0], self.means[1] - self.means[0]
        return self.least, high - low


class _Weighed(Hook):
    parallel = False  # each process would see the range of its own rows

    def __init__(self, method: BiasLoss, layer: str, task: Task) -> None:
        self.method, self.layer, self.task = method, layer, task
        self._caught: Taps | None = None

    def start(self, model: nn.Module) -> None:
        """Watch the layer."""
        self.module = Extent()
        self._caught = Taps(model, (self.layer,), main_tensor, training_only=True)

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:  # noqa: ARG002 - the task's own is left out
        """Return the weighed cross-entropy. Raises TaskError where answers are no classes or features no maps."""
        assert self._caught is not None
        assert self.module is not None
        found, method = self._caught.take(), self.method
        answers, target = found[OUTPUT], self.task.target(batch)
        if answers.ndim != 2 or answers.shape[1] < 2:
            raise TaskError(f"bias-loss needs logits of classes, [rows, classes]; found {tuple(answers.shape)}")
        if not target.is_floating_point():
            target = target.reshape(-1).long()
        variances = spread(found[self.layer])
        low, width = self.module(variances, method.range)
        each = weights(variances, low, width, method.alpha, method.beta)
        if method.control:
            each = each.mean()
        return (each * F.cross_entropy(answers.float(), target.to(answers.device), reduction="none")).mean()

    def finish(self, model: nn.Module) -> None:  # noqa: ARG002
        """Stop watching."""
        if self._caught is not None:
            self._caught.remove()
