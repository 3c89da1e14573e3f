"""Layer cut: a student made of some of its teacher's blocks, to be trained afterwards."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from lessen.architectures.find import find_parts
from lessen.architectures.parts import Stack
from lessen.errors import InputError
from lessen.method import Card, Context, Forecast, Method
from lessen.methods.sites import state_bytes
from lessen.pruning.choice import Choice
from lessen.pruning.layout import Layout
from lessen.pruning.slicing import carry_out
from lessen.task import Task


class LayerCut(Method):
    """Keep `layers` blocks of a Transformer and drop the others; the rest of the model stays as it is.

    DistilBERT (arXiv 1910.01108) starts its student so, with one block of two. What comes out is a plain smaller model
    of the same class, whose configuration says the new depth: `save_pretrained` writes a folder that transformers
    reads. A step of distillation should follow. Differences: any depth; blocks are spread evenly over the teacher's,
    first and last among them, unless `rule` says otherwise; embeddings and head are kept, where the paper drops the
    pooler and token types. `early` is for causal models, whose lowest blocks make the large activations that all others
    rely on (arXiv 2402.17762).
    """

    card = Card(
        name="layer-cut",
        family="distil",
        summary="Keep some of a Transformer's blocks, as the student that a distillation starts from.",
        acts_on=("blocks",),
        source="arXiv 1910.01108",
        claims=frozenset({"bytes", "macs", "latency"}),
    )
    layers: int = Field(6, ge=1, le=10_000, description="blocks that are kept")
    rule: Literal["spread", "early", "first", "last"] = Field(
        "spread",
        description="spread: evenly from the first to the last; early: two fifths of them the lowest, the rest spread "
        "above; first: the lowest; last: the highest",
    )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Drop the blocks.

        Raises:
            NothingMatchedError: there are no blocks, or no more than are kept.
            InputError: the blocks are not all alike, so that one cannot take another's place.
        """
        stack, blocks = self._blocks(model)
        kept = chosen(len(blocks), self.layers, self.rule)
        marks = torch.zeros(len(blocks), dtype=torch.bool)
        marks[kept] = True
        model = carry_out(Layout(model, {stack.path: stack}, ()), Choice(layers={stack.path: marks}), dense={})
        context.findings["blocks kept"] = kept
        return model

    def forecast(self, model: nn.Module, task: Task, context: Context) -> Forecast | None:  # noqa: ARG002
        """Return the bytes of what is left. Raises as `apply`."""
        _, blocks = self._blocks(model)
        kept = chosen(len(blocks), self.layers, self.rule)
        gone = sum(state_bytes(block) for place, block in enumerate(blocks) if place not in kept)
        return Forecast(state_bytes(model) - gone, f"{self.layers} of {len(blocks)} blocks; train it afterwards")

    def _blocks(self, model: nn.Module) -> tuple[Stack, Any]:
        """Return the stack and the list of its blocks."""
        if not any(True for module in model.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))):
            raise self.nothing_matched(model)
        try:
            stack = find_parts(model, "decoder", "encoder").stack
        except InputError as error:
            raise self.nothing_matched(model, str(error)) from error
        blocks: Any = model.get_submodule(stack.path)
        if len(blocks) <= self.layers:
            raise self.nothing_matched(model, f"{stack.path} has {len(blocks)} blocks, of which {self.layers} are kept")
        return stack, blocks


def chosen(depth: int, layers: int, rule: str) -> list[int]:
    """Return which blocks are kept, in order."""
    if rule == "first" or (rule != "last" and layers == 1):
        return list(range(layers))
    if rule == "last":
        return list(range(depth - layers, depth))
    whole = max(1, round(0.4 * layers)) if rule == "early" else 1
    above = layers - whole
    lowest = whole - 1
    return [*range(whole), *(lowest + round(place * (depth - 1 - lowest) / above) for place in range(1, above + 1))]
