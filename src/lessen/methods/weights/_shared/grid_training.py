"""Training the grids of few-bit layers end to end: codes stay, scales and minimums follow the original's answers.

    batch ─ original model, no gradient ──────────────────────────── logits ─┐
    batch ─ model ─ layer: y = x (s code + m)^T ─ ... ─ head ─────── logits ─┴─ KL(original || model), mean over rows
                    s = s0 + d_s |s0|,  m = m0 + d_m |s0|            d_s, d_m [out, groups] train, from 0

Moves are in steps of the grid itself, so that one rate fits all layers. A layer's weight is decoded for a product and
dropped, in the backward pass again: beside the model there are codes of a byte, and what the optimiser holds of
the grids.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.method import Context
from lessen.methods.distil._shared.losses import check_answers, class_rows, single_divergence, soft_divergence
from lessen.methods.sites import Site, replace
from lessen.methods.weights._shared.slopes import without_parameters
from lessen.stored import bits as packing
from lessen.stored.linears.group_grid import GroupGrid
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.task import Task
from lessen.train.device import device_of
from lessen.train.fit import fit
from lessen.train.settings import FitSettings

HALF_MAX = 65_504.0
WARM = 0.05
"""Share of the steps in which the rate rises."""


class Knobs(Protocol):
    """How long and how fast."""

    @property
    def steps(self) -> int: ...

    @property
    def accumulate(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...


class _Product(torch.autograd.Function):
    """inputs [*, in] times the weight that codes uint8 [out, in] stand for, transposed; all but the codes learn."""

    @staticmethod
    def forward(
        context: Any, inputs: Tensor, scales: Tensor, minimums: Tensor | None, codes: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Return [*, out] of the type of the inputs. Scales and minimums float32 [out, groups]; grid: (bits, group)."""
        context.save_for_backward(inputs, scales, minimums, codes)
        context.grid = grid
        return F.linear(inputs, _weight(codes, scales, minimums, grid).to(inputs.dtype))

    @staticmethod
    def backward(context: Any, slope: Tensor) -> Any:
        """Return the slopes along inputs, scales and minimums."""
        inputs, scales, minimums, codes = context.saved_tensors
        towards_inputs = None
        if context.needs_input_grad[0]:
            towards_inputs = slope @ _weight(codes, scales, minimums, context.grid).to(slope.dtype)
        rows = slope.flatten(0, -2).t() @ inputs.flatten(0, -2)
        return towards_inputs, *_grid_slopes(rows.float(), codes, minimums is not None, *context.grid), None, None


def _half(values: Tensor, before: Tensor) -> Tensor:
    fits = values.isfinite() & (values.abs() <= HALF_MAX)
    return torch.where(fits, values, before.float()).half()


def _weight(codes: Tensor, scales: Tensor, minimums: Tensor | None, grid: tuple[int, int]) -> Tensor:
    return GroupGrid(*grid, scales, minimums).values(codes)


def _grid_slopes(slope: Tensor, codes: Tensor, asymmetric: bool, bits: int, group: int) -> tuple[Tensor, Tensor | None]:
    """Return the slopes along scales and minimums, [out, groups], of one along a weight float32 [out, in]."""
    levels = codes.float() - (0 if asymmetric else 1 << (bits - 1))
    along = [levels.mul_(slope), slope] if asymmetric else [levels.mul_(slope)]
    padding = -slope.shape[1] % group
    sums = [F.pad(each, (0, padding)).view(len(each), -1, group).sum(2) for each in along]
    return sums[0], sums[1] if asymmetric else None


class GridInTraining(nn.Module):
    """A few-bit layer whose scales and minimums move; codes and bias stay."""

    def __init__(self, layer: GroupQuantizedLinear) -> None:
        super().__init__()
        self.grid = (layer.bits, layer.group)
        self.codes: Tensor
        self.first: Tensor
        self.bias: Tensor | None
        self.register_buffer("codes", packing.unpack(layer.codes, layer.bits, layer.in_features))
        self.register_buffer("first", layer.scales.float())
        self.register_buffer("lowest", None if layer.minimums is None else layer.minimums.float())
        self.register_buffer("bias", layer.bias)
        self.scale_moves = nn.Parameter(torch.zeros_like(self.first))
        self.minimum_moves = None if layer.minimums is None else nn.Parameter(torch.zeros_like(self.first))

    def now(self) -> tuple[Tensor, Tensor | None]:
        """Return scales and minimums as they are now, float32 [out, groups]."""
        step = self.first.abs()
        scales = self.first + self.scale_moves * step
        if self.minimum_moves is None:
            return scales, None
        assert isinstance(self.lowest, Tensor)
        return scales, self.lowest + self.minimum_moves * step

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [*, in] to [*, out]."""
        scales, minimums = self.now()
        product: Tensor = _Product.apply(inputs, scales, minimums, self.codes, self.grid)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias.to(product.dtype)

    @torch.no_grad()
    def write(self, layer: GroupQuantizedLinear) -> None:
        """Put the grid into the layer, rounded as the layer stores it; what fp16 cannot hold stays as it was."""
        scales, minimums = self.now()
        before = layer.grid
        kept = None
        if minimums is not None and before.minimums is not None:
            kept = _half(minimums, before.minimums)
        layer.put(GroupGrid(*self.grid, _half(scales, before.scales), kept, before.scale_bits))


def train_grids(
    model: nn.Module, sites: Sequence[Site], original: nn.Module, task: Task, context: Context, knobs: Knobs
) -> nn.Module:
    """Train the grids of the few-bit layers at `sites`, the rest of the model frozen; record the loss and the seconds.

    Args:
        original: the model whose answers are learned; never changed.

    Raises:
        TaskError: the train split is empty, or the original answers in another form.
        NonFiniteError: the loss became NaN or infinite.
    """
    began = time.perf_counter()
    layers = [site.module for site in sites]
    training = nn.ModuleList(GridInTraining(layer) for layer in layers)

    def loss(_grids: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            known = task.forward(original, batch)
        return divergence(task.forward(model, batch), known, batch)

    example = next(iter(task.batches("train", seed=context.seed)), None)
    if example is None:
        raise TaskError(f"task {task.name!r} has an empty train split: nothing to learn grids on")
    with without_parameters(original), without_parameters(model):
        for site, each in zip(sites, training, strict=True):
            model = replace(model, site, each)
        before = float(loss(training, example).detach())
        fit(
            training,
            batches=lambda number: task.batches("train", seed=context.seed * 1_000_003 + number - 1),
            loss=loss,
            validate=None,
            settings=FitSettings(
                steps=knobs.steps, optimizer="adam", learning_rate=knobs.learning_rate, schedule="cosine",
                warmup_steps=int(WARM * knobs.steps), minimum_learning_rate=0.0, betas=(0.9, 0.95), clip_norm=None,
                accumulate=knobs.accumulate,
            ),
            seed=context.seed,
            log=context.log,
            device=device_of(model),
        )  # fmt: skip
        context.findings["loss"] = {"before": before, "after": float(loss(training, example).detach())}
        for site, layer, each in zip(sites, layers, training, strict=True):
            each.write(layer)  # type: ignore[operator]
            model = replace(model, site, layer)
    context.train_seconds += time.perf_counter() - began
    return model


def divergence(student: Tensor, teacher: Tensor, batch: Any) -> Tensor:
    """Return KL(teacher || student), mean over rows, of what both answered. Raises TaskError for other forms."""
    check_answers(student, teacher)
    if student.ndim == 1:
        return single_divergence(student, teacher, 1.0)
    return soft_divergence(class_rows(student, batch), class_rows(teacher, batch), 1.0)
