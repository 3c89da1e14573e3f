"""Bottlenecks on all heads and units of a model while it trains, and what they leave behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.pruning.bottleneck import Bottleneck, Budget
from lessen.pruning.choice import Choice
from lessen.pruning.costs import Costs, Measure, Soft
from lessen.pruning.layout import Layout
from lessen.train.hooks import Hook


class Masks(nn.Module):
    """The bottlenecks of a model, by path of the block."""

    def __init__(self, layout: Layout, generator: torch.Generator, factor: float, variance: float) -> None:
        super().__init__()
        self.layout = layout
        self.heads = {
            one.path: Bottleneck(one.groups, generator, factor, variance) for one in layout.layers if one.groups > 1
        }
        self.units = {
            one.path: Bottleneck(one.hidden, generator, factor, variance) for one in layout.layers if one.hidden
        }
        self.every = nn.ModuleList([*self.heads.values(), *self.units.values()])

    def attach(self) -> list[Any]:
        """Multiply what goes into output projections and `down`; returns handles that take the masks off."""
        handles: list[Any] = []
        for layer in self.layout.layers:
            attention, feeding = layer.block.attention, layer.block.feed_forward
            if layer.path in self.heads and attention is not None:
                handles.append(self._on(self.heads[layer.path], attention.output.module, layer.columns))
            if layer.path in self.units and feeding is not None:
                handles.append(self._on(self.units[layer.path], feeding.down.module, 1))
        return handles

    def _on(self, mask: Bottleneck, module: nn.Module, columns: int) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> Any:
            given = arguments[0]
            factors = mask.draw(given) if self.layout.model.training else mask.hard()
            return (given * factors.to(given.dtype).repeat_interleave(columns, -1), *arguments[1:])

        return module.register_forward_pre_hook(hook)

    def counts(self, start: Choice) -> Soft:
        """Return how many parts are kept, softly, with gradients."""
        return Soft(
            {path: one.kept() for path, one in self.heads.items()},
            {path: one.kept() for path, one in self.units.items()},
            {path: marks.double() for path, marks in start.layers.items()},
            {path: marks.sum() for path, marks in start.width.items()},
        )

    def divergence(self, head_weight: float) -> Tensor:
        """Return the sum of all divergences, those of heads weighted."""
        parts = [head_weight * one.divergence() for one in self.heads.values()]
        parts += [one.divergence() for one in self.units.values()]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the columns that masks stood before by their means; what is pruned afterwards may be anything."""
        for layer in self.layout.layers:
            attention, feeding = layer.block.attention, layer.block.feed_forward
            if layer.path in self.heads and attention is not None:
                means = self.heads[layer.path].mu.repeat_interleave(layer.columns)
                attention.output.module.weight.mul_(means.to(attention.output.module.weight))
            if layer.path in self.units and feeding is not None:
                feeding.down.module.weight.mul_(self.units[layer.path].mu.to(feeding.down.module.weight))


class MaskHook(Hook):
    """Puts masks on a model while it trains, and adds their divergence and the budget's term to the loss.

    Args:
        whole: what the model costs with nothing masked but what `start` says.
        kl, head_weight: factors on the divergence, and in it on that of heads.
    """

    def __init__(
        self, masks: Masks, budget: Budget, costs: Costs, of: Measure, start: Choice, kl: float, head_weight: float
    ) -> None:
        self.masks, self.budget, self.costs, self.of, self.decided = masks, budget, costs, of, start
        self.kl, self.head_weight = kl, head_weight
        self.whole = costs.total(of, start)
        self.module = nn.ModuleList([masks.every, budget])
        self.step = 0
        self.sparsity = 0.0
        """Soft share of the cost that is masked, at the last step."""
        self._handles: list[Any] = []

    def start(self, model: nn.Module) -> None:  # noqa: ARG002
        """Attach the masks."""
        self._handles = self.masks.attach()

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:  # noqa: ARG002
        """Return the loss with both terms."""
        sparsity = 1 - self.costs.soft(self.of, self.masks.counts(self.decided)) / self.whole
        self.sparsity = float(sparsity.detach())
        term = self.kl * self.masks.divergence(self.head_weight)
        whole: Tensor = loss + term.to(loss) + self.budget(sparsity, self.step).to(loss)
        return whole

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Let the target move."""
        self.step = step

    def finish(self, model: nn.Module) -> None:  # noqa: ARG002
        """Take the masks off."""
        for handle in self._handles:
            handle.remove()
