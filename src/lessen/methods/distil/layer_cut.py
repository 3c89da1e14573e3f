"""Layer cut: a student made of some of its teacher's blocks, to be trained afterwards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import nn

from lessen.architectures.find import find_parts
from lessen.errors import InputError
from lessen.method import Card, Context, Forecast, Method
from lessen.methods.sites import state_bytes
from lessen.task import Task

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
NUMBERS = ("layer_idx", "layer_id", "layer_number")


class LayerCut(Method):
    """Keep `layers` blocks of a Transformer and drop the others; the rest of the model stays as it is.

    DistilBERT (arXiv 1910.01108) starts its student so, with one block of two. What comes out is a plain smaller model
    of the same class, whose configuration says the new depth: `save_pretrained` writes a folder that transformers
    reads. A step of distillation should follow. Differences: any depth; blocks are spread evenly over the teacher's,
    first and last among them, unless `rule` says otherwise; embeddings and head are kept, where the paper drops the
    pooler and token types.
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
    rule: Literal["spread", "first", "last"] = Field(
        "spread", description="spread: evenly from the first to the last; first: the lowest; last: the highest"
    )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:  # noqa: ARG002
        """Drop the blocks.

        Raises:
            NothingMatchedError: there are no blocks, or no more than are kept.
            InputError: the blocks are not all alike, so that one cannot take another's place.
        """
        path, blocks = self._blocks(model)
        depth = len(blocks)
        kept = chosen(depth, self.layers, self.rule)
        _check_alike(model, blocks, kept)
        short = nn.ModuleList(blocks[i] for i in kept) if isinstance(blocks, nn.ModuleList) else nn.Sequential(
            *(blocks[i] for i in kept)
        )  # fmt: skip
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, short)
        for place, block in enumerate(short):
            _renumber(block, kept[place], place)
        _settle(model, depth, kept)
        context.findings["blocks kept"] = kept
        return model

    def forecast(self, model: nn.Module, task: Task, context: Context) -> Forecast | None:  # noqa: ARG002
        """Return the bytes of what is left. Raises as `apply`."""
        _, blocks = self._blocks(model)
        kept = chosen(len(blocks), self.layers, self.rule)
        gone = sum(state_bytes(block) for place, block in enumerate(blocks) if place not in kept)
        return Forecast(state_bytes(model) - gone, f"{self.layers} of {len(blocks)} blocks; train it afterwards")

    def _blocks(self, model: nn.Module) -> tuple[str, Any]:
        """Return the path and the list of the blocks."""
        if not any(True for module in model.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))):
            raise self.nothing_matched(model)
        try:
            stack = find_parts(model, "decoder", "encoder").stack
        except InputError as error:
            raise self.nothing_matched(model, str(error)) from error
        blocks: Any = model.get_submodule(stack.path)
        if len(blocks) <= self.layers:
            raise self.nothing_matched(model, f"{stack.path} has {len(blocks)} blocks, of which {self.layers} are kept")
        return stack.path, blocks


def chosen(depth: int, layers: int, rule: str) -> list[int]:
    """Return which blocks are kept, in order."""
    if rule == "first" or (rule == "spread" and layers == 1):
        return list(range(layers))
    if rule == "last":
        return list(range(depth - layers, depth))
    return [round(place * (depth - 1) / (layers - 1)) for place in range(layers)]


def _configs(model: nn.Module) -> list[Any]:
    """Return the distinct configurations that parts of a model carry."""
    found = {id(config): config for m in model.modules() if (config := getattr(m, "config", None)) is not None}
    return list(found.values())


def _check_alike(model: nn.Module, blocks: Any, kept: list[int]) -> None:
    """Refuse where a kept block would stand in the place of one of another kind. Raises InputError."""
    for place, old in enumerate(kept):
        kinds = [type(blocks[place]), type(blocks[old])]
        for config in _configs(model):
            listed = getattr(config, "layer_types", None)
            if isinstance(listed, (list, tuple)) and len(listed) == len(blocks):
                kinds += [listed[place], listed[old]]
        if kinds[0] is not kinds[1] or any(a != b for a, b in zip(kinds[2::2], kinds[3::2], strict=True)):
            raise InputError(
                f"block {old} of {type(model).__name__} is of another kind than block {place}, whose place it would "
                "take; choose another number of layers or another rule"
            )


def _renumber(block: nn.Module, old: int, new: int) -> None:
    for module in block.modules():
        for name in NUMBERS:
            if getattr(module, name, None) == old:
                setattr(module, name, new)


def _settle(model: nn.Module, depth: int, kept: list[int]) -> None:
    """Let configurations say the new depth."""
    for config in _configs(model):
        for name in DEPTHS:
            if getattr(config, name, None) == depth:
                setattr(config, name, len(kept))
        listed = getattr(config, "layer_types", None)
        if isinstance(listed, (list, tuple)) and len(listed) == depth:
            config.layer_types = [listed[place] for place in kept]
