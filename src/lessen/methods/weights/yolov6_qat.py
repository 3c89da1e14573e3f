"""YOLOv6's QAT: training under int8 rounding from calibrated ranges, taught by the float network's maps and answers."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lessen.architectures.stages import find_stages
from lessen.errors import InputError
from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.distil._shared.distilled import probe
from lessen.methods.distil._shared.losses import channel_divergence, row_divergence
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import Site, replace
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.folded_norms import fold_batch_norms
from lessen.methods.weights._shared.ranges import InputRanges, input_ranges
from lessen.methods.weights.static_int8 import KINDS, empty_form, unfit
from lessen.stored.linears.static_int8 import CONVOLVE, LAYERS
from lessen.task import Task, main_tensor
from lessen.train.device import device_of, to_device
from lessen.train.taps import OUTPUT, Outputs
from lessen.train.teachers import DistilHook, Teacher, evaluating

MAPS = 3
"""Exits whose maps are compared, the last ones, as the three of YOLOv6's neck."""


class YOLOv6QAT(ModuleMethod):
    """Train through rounding to int8, with the float network as the teacher of classes and of channels' maps.

    ranges of inputs fixed by calibration ─ weights rounded by channel ─ straight-through gradients inside the range
    loss + w(e) (T^2 KL of classes + maps_weight * KL of each channel's softmax over places), w from 1 down to 0.01

    Source: YOLOv6 (arXiv 2209.02976), its quantisation-aware training with channel-wise distillation (arXiv
    2011.13256): temperature 20 for classes and 1 for maps, weight 10, w(e) a cosine. Batch norms are folded first, so
    that what trains is what serves. Differences: any classifier; inputs are asymmetric (no bit is lost after a ReLU),
    ranges of weights follow the weights, no terms for boxes; without maps the answers alone teach. What is stored is
    `int8-static`'s layers: integers, not rounded floats.
    """

    card = Card(
        name="yolov6-qat",
        family="weights",
        summary="Train int8 layers through their rounding, taught by the float network's maps and answers.",
        acts_on=KINDS,
        source="YOLOv6 2022, arXiv 2209.02976",
        needs=frozenset({"labels", "gradients", "training", "calibration"}),
        claims=frozenset({"bytes"}),
    )
    ranges: InputRanges = Field("mse", description="range of inputs: all, without rare ends, or by least error")
    percentile: float = Field(99.99, gt=50, le=100, description="inputs, in %, that percentile ranges hold")
    calibration_batches: int = Field(4, ge=1, le=10**6, description="train batches to take ranges from")
    learning_rate: float = Field(1e-4, gt=0, le=10, description="of training under rounding")
    epochs: int = Field(10, ge=1, le=10_000, description="epochs of training under rounding")
    maps_weight: float = Field(10.0, ge=0, le=1e6, description="factor on the divergence of maps; 0: no maps")
    classes_weight: float = Field(1.0, ge=0, le=1e6, description="factor on the divergence of classes")
    temperature: float = Field(20.0, gt=0, le=1000, description="divides the logits of both")
    min_weights: int = Field(64, ge=1, le=10**9, description="layers with fewer weights stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train and replace. Raises NothingMatchedError; TaskError where the task cannot train."""
        model = linearised(model)
        self.eligible(model, KINDS, Context(), self._reject)
        model, folded = fold_batch_norms(model.eval(), task)
        context.findings["folded_norms"] = len(folded)
        master = copy.deepcopy(model)
        sites = self.eligible(model, KINDS, context, self._reject)
        found = input_ranges(model, task, sites, self.calibration_batches, self.ranges, self.percentile)
        made: list[Site] = []
        for site, ends in zip(sites, found, strict=True):
            if ends is None:
                context.findings.setdefault("skipped", {})[site.path] = "calibration ran nothing through it"
                continue
            made.append(Site(site.paths, Rounding(site.module, *ends)))
            model = replace(model, site, made[-1].module)
        self._train(model.train(), master, task, context)
        for site in made:
            model = replace(model, site, site.module.stored())
        return model.eval()

    def _train(self, model: nn.Module, master: nn.Module, task: Task, context: Context) -> None:
        lowest = min(task.settings.minimum_learning_rate, self.learning_rate)
        settings = dataclasses.replace(
            task.settings, learning_rate=self.learning_rate, minimum_learning_rate=lowest, epochs=self.epochs
        )
        taps = self._exits(master, task) if self.maps_weight else ()
        context.findings["maps"] = list(taps)
        teacher = Teacher(master, task.forward, taps=taps)
        retrain.train(
            model, task.view(settings=settings), context, epochs=self.epochs, hooks=(_MapsAndClasses(teacher, self),)
        )

    def _exits(self, master: nn.Module, task: Task) -> tuple[str, ...]:
        """Return the paths of the last maps, none where the network has no maps."""
        batch = task.example_batch()
        try:
            with evaluating(master):
                exits = find_stages(master, lambda one: task.forward(one, to_device(batch, device_of(one))))
        except InputError:
            return ()
        shown = probe(master, exits, task, batch)
        return tuple(path for path in exits if shown[path].ndim == 4)[-MAPS:]

    def _reject(self, layer: Any) -> str | None:
        return unfit(layer, self.min_weights)


class Rounding(nn.Module):
    """A linear layer or convolution that computes in float what its int8 form will, gradients straight through."""

    def __init__(self, layer: Any, low: float, high: float) -> None:
        super().__init__()
        self.layer, self.ends = layer, (low, high)
        form: Any = empty_form(layer)
        form.fill(layer, True, low, high)
        self.step, self.zero = float(form.step), int(form.zero)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map what the layer maps."""
        rounded = torch.fake_quantize_per_tensor_affine(inputs, self.step, self.zero, -128, 127)
        weight = self.layer.weight
        peaks = weight.detach().abs().flatten(1).amax(1)
        scales = torch.where(peaks > 0, peaks / 127.0, torch.ones_like(peaks))
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -127, 127)
        own = self.layer
        if isinstance(own, nn.Linear):
            return functional.linear(rounded, weight, own.bias)
        convolve: Any = CONVOLVE[LAYERS[type(own)]]
        made: Tensor = convolve(rounded, weight, own.bias, own.stride, own.padding, own.dilation, own.groups)
        return made

    def stored(self) -> nn.Module:
        """Return the int8 layer of the weights as they are now."""
        made: Any = empty_form(self.layer)
        made.fill(self.layer, True, *self.ends)
        return made  # type: ignore[no-any-return]


class _MapsAndClasses(DistilHook):
    def __init__(self, teacher: Teacher, method: YOLOv6QAT) -> None:
        super().__init__(teacher, main_tensor, teacher.taps)
        self.method, self.epoch = method, 0

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:  # noqa: ARG002
        """Return the task's loss with both terms, which fade over the epochs."""
        asked = self.method
        own, wanted = student[OUTPUT], teacher[OUTPUT]
        if own.dim() == 1:  # one logit: the other class's is 0
            own, wanted = (torch.stack([torch.zeros_like(one), one], 1) for one in (own, wanted))
        term = asked.classes_weight * row_divergence(own, wanted, asked.temperature).mean()
        for path in self.taps:
            term = term + asked.maps_weight * channel_divergence(student[path], teacher[path], 1.0)
        return loss + faded(self.epoch, asked.epochs) * term

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:  # noqa: ARG002
        """Note how far training is."""
        self.epoch = epoch


def faded(epoch: int, epochs: int) -> float:
    """Return the weight of the teacher's terms after so many epochs: a cosine from 1 to 0.01."""
    return 1.0 - 0.99 * (1.0 - math.cos(math.pi * epoch / epochs)) / 2.0
