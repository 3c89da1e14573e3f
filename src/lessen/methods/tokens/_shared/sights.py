"""What methods share that put other tokens in place of a prompt's pictures: no cards."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from lessen.architectures.find import find_parts
from lessen.architectures.visual_host import VisualHost, find_visual_host
from lessen.errors import InputError, NothingMatchedError
from lessen.method import Context, Method
from lessen.methods import retrain
from lessen.task import Task
from lessen.tokens.visual.macs import prefill_macs, shapes
from lessen.tokens.visual.pictures import square
from lessen.tokens.visual.sights import sight_of
from lessen.tokens.visual.splice import Sight, SplicePatch

Learns = Literal["sight", "projector", "all"]


@dataclass(frozen=True)
class Shown:
    """What the task's example batch shows the model."""

    host: VisualHost
    width: int
    """D, of what the tower gives the projector."""
    tokens: int
    """n, of each picture."""
    depth: int
    """Blocks of the tower."""

    @property
    def text(self) -> int:
        """C, the width of the language model."""
        return self.host.decoder.width

    def side(self, name: str) -> int:
        """Return the side of the square grid of a picture. Raises InputError: it is none."""
        grid = square(self.tokens)
        if grid is None:
            raise InputError(f"{name}: {self.tokens} tokens of a picture are no square grid")
        return grid[0]


class SightMethod(Method):
    """Other tokens in place of pictures, and parts that learn to make them."""

    epochs: int = Field(0, ge=0, le=1000, description="epochs of training with the sight in place")
    learns: Learns = Field("all", description="what trains: the sight's own parts, the projector too, or all")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Put the sight in and train it if asked.

        Raises:
            NothingMatchedError: no language model that sees pictures as tokens, or none in the task's example.
            InputError: the host rearranges pictures itself, or widths do not fit.
        """
        if sight_of(model) is not None:
            raise self.nothing_matched(model, "its pictures are seen through another sight")
        try:
            host = find_visual_host(model)
        except InputError as error:
            raise self.nothing_matched(model, str(error)) from error
        host.require_patches()
        shown = look(model, host, task)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            sight = self.sight(shown)
        tensor = next(model.parameters())
        patch = sight.to(device=tensor.device, dtype=tensor.dtype).eval().attach(model)
        context.findings.update(_found(model, shown, patch, task))
        if self.epochs:
            with self._learning(model, shown, sight):
                retrain.train(model, task, context, epochs=self.epochs)
            model.eval()
        return model

    @abstractmethod
    def sight(self, shown: Shown) -> Sight:
        """Return the sight for a host and what it is shown."""

    @contextmanager
    def _learning(self, model: nn.Module, shown: Shown, sight: Sight) -> Iterator[None]:
        """Let only the chosen parts learn, and put back what was chosen before."""
        before = {name: one.requires_grad for name, one in model.named_parameters()}
        own = {id(one) for one in sight.parameters()}
        if self.learns != "sight":
            own |= {id(one) for one in shown.host.projector.module.parameters()}
        if self.learns != "all":
            for one in model.parameters():
                one.requires_grad_(id(one) in own)
        try:
            yield
        finally:
            for name, one in model.named_parameters():
                one.requires_grad_(before[name])


def look(model: nn.Module, host: VisualHost, task: Task) -> Shown:
    """Return what the task's example batch shows a model.

    Raises:
        NothingMatchedError: the batch shows no picture.
    """
    found: list[torch.Size] = []
    handle = host.projector.module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].shape))
    try:
        with torch.no_grad():
            task.forward(model.eval(), task.example_batch())
    finally:
        handle.remove()
    if not found or len(found[0]) != 3:
        raise NothingMatchedError("the example batch of the task shows no picture of a grid of tokens")
    return Shown(host, int(found[0][2]), int(found[0][1]), _depth(model))


def _depth(model: nn.Module) -> int:
    return len(find_parts(model, "vision-language").stacks["vision"].blocks)


def _found(model: nn.Module, shown: Shown, patch: SplicePatch, task: Task) -> dict[str, Any]:
    """Return tokens before and after, and the share of the decoder's multiply-adds, for the example batch."""
    batch = task.example_batch()
    with torch.no_grad():
        task.forward(model.eval(), batch)
    if not patch.lengths:
        return {}
    given = task.inputs(batch)
    ids = given.get("input_ids") if isinstance(given, Mapping) else None
    found: dict[str, Any] = {"visual_tokens": sum(patch.tokens) / len(patch.tokens), "tokens_out": max(patch.lengths)}
    if ids is not None:
        kinds = shapes(shown.host)
        whole, left = (prefill_macs(kinds, [count] * len(kinds)) for count in (ids.shape[1], max(patch.lengths)))
        found |= {"tokens_in": int(ids.shape[1]), "prefill_macs_share": left / whole}
    return found
