"""RepOptimizer: a plain convolution whose gradients are scaled so that it trains as branches would."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.modules import ModuleMethod
from lessen.methods.weights._shared.branched import Branches, Scale, branch, cannot_branch, centred, identity
from lessen.task import Task


class RepOptimizer(ModuleMethod):
    """Learn the scales of branches once, then train plain convolutions from the merged start under a gradient mask.

    1  each k x k convolution becomes s3 * (k x k) + s1 * (1 x 1) + s0 * x; all is trained; only the scales are kept
    2  the network as it was, convolutions at W3 s3 + W1 s1 + s0 I of fresh W3 and W1; the gradient of each weight is
       multiplied by s3^2, in the middle + s1^2, and + 1 where a channel reads itself and x was a branch

    Source: Ding et al. 2022, Re-parameterizing Your Optimizers rather than Architectures (arXiv 2205.15242), as YOLOv6
    trains with it (arXiv 2209.02976). One step equals one of the branches with constant scales. Training is SGD of
    momentum 0.9 without Nesterov's look ahead, for other rules would undo the mask. Differences: both runs are on the
    same task (there scales come from another data set); any network's k x k convolutions.
    """

    card = Card(
        name="rep-optimizer",
        family="weights",
        summary="Train plain convolutions under gradient masks as if they had branches; int8 loses little.",
        acts_on=(nn.Conv2d,),
        source="Ding et al. 2022, arXiv 2205.15242",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset(),
    )
    learning_rate: float = Field(0.02, gt=0, le=100, description="of SGD in both runs")
    weight_decay: float = Field(5e-4, ge=0, le=1, description="of SGD in both runs, after the mask")
    search_epochs: int | None = Field(None, ge=1, le=10_000, description="epochs that scales are learned; none: epochs")
    epochs: int | None = Field(None, ge=1, le=10_000, description="epochs at most; none: the task's own")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Search and train. Raises NothingMatchedError; TaskError where the task cannot train."""
        self.eligible(model, (nn.Conv2d,), Context(), cannot_branch)  # refuse before anything is built
        task = self._by_sgd(task)
        searched = copy.deepcopy(retrain.fresh(model, task, Context(context.seed, log=context.log)))
        sites = self.eligible(searched, (nn.Conv2d,), context, cannot_branch)
        searched, made = branch(searched, sites, lambda layer: Branches(layer, Scale, Scale, Scale), context.seed)
        retrain.train(searched.train(), task, context, epochs=self.search_epochs or self.epochs)
        model = retrain.fresh(model, task, context)
        layers = [model.get_submodule(site.paths[0]) for site in made]
        masks = [start(layer, site.module, context.generator) for layer, site in zip(layers, made, strict=True)]
        context.findings["scales"] = {site.path: _said(site.module) for site in made}
        handles = masked(layers, masks)
        try:
            retrain.train(model.train(), task, context, epochs=self.epochs)
        finally:
            for handle in handles:
                handle.remove()
        return model.eval()

    def _by_sgd(self, task: Task) -> Task:
        lowest = min(task.settings.minimum_learning_rate, self.learning_rate)
        return task.view(settings=dataclasses.replace(
            task.settings, optimizer="sgd", learning_rate=self.learning_rate, minimum_learning_rate=lowest,
            weight_decay=self.weight_decay,
        ))  # fmt: skip


@torch.no_grad()
def start(layer: Any, scaled: Branches, generator: torch.Generator) -> Tensor:
    """Set a convolution to fresh branches under learned scales; return the mask of its gradient, of its shape."""
    wide, narrow = (_factors(one) for one in (scaled.wide_scale, scaled.narrow_scale))
    kernel, point = (_drawn(conv.weight, generator) for conv in (scaled.wide, scaled.narrow))
    made: Tensor = kernel * wide + centred(point * narrow, layer)
    mask: Tensor = wide.square().expand_as(layer.weight) + centred(narrow.square().expand_as(point), layer)
    if scaled.straight is not None:
        made, mask = made + identity(layer) * _factors(scaled.straight), mask + identity(layer)
    layer.weight.copy_(made)
    if layer.bias is not None:
        layer.bias.zero_()
    return mask


def masked(layers: Sequence[Any], masks: Sequence[Tensor]) -> list[Any]:
    """Multiply the gradients of weights by masks until the handles that are returned are removed."""

    def times(mask: Tensor) -> Any:
        return lambda gradient: gradient * mask

    learned = [(layer, mask) for layer, mask in zip(layers, masks, strict=True) if layer.weight.requires_grad]
    return [layer.weight.register_hook(times(mask)) for layer, mask in learned]


def _drawn(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return weights as torch draws those of a convolution: uniform within 1 / sqrt(inputs)."""
    bound: float = like[0].numel() ** -0.5
    drawn = torch.rand(like.shape, generator=generator) * (2 * bound) - bound
    return drawn.to(like)


def _factors(scale: nn.Module) -> Tensor:
    assert isinstance(scale, Scale)
    return scale.factors.detach().view(-1, 1, 1, 1)


def _said(branches: Branches) -> dict[str, float]:
    parts = {"wide": branches.wide_scale, "narrow": branches.narrow_scale, "straight": branches.straight}
    return {name: round(float(_factors(one).mean()), 4) for name, one in parts.items() if one is not None}
