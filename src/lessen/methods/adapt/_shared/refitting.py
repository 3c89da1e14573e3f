"""Block reconstruction after pruning: what each block writes into the stream is refitted to the model before it.

dense    x ─ attention ─ o ─(+)─ feed-forward ─ down ─(+)─ ...     both walk the same batches, block by block
pruned   x ─ attention ─ o'─(+)─ feed-forward ─ down'─(+)─ ...     o' and down' are least squares; then both go on
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear as Read

from lessen.architectures.find import find_parts
from lessen.architectures.parts import Block, Part, Stack
from lessen.errors import InputError, TaskError
from lessen.log import Log
from lessen.methods.blockwise import Step, walk
from lessen.pruning.layout import first_tensor
from lessen.pruning.refit import Sums
from lessen.pruning.slicing import NAME
from lessen.stored.pruned_shape import PrunedShape
from lessen.task import Task
from lessen.train.device import device_of, to_device


class _Enough(BaseException):
    """Ends the call of a block of which the rest is not needed."""


@dataclass(frozen=True)
class Caught:
    """What a layer was given and answered, and what stood in the stream beside it."""

    inputs: Tensor
    answer: Tensor
    beside: Tensor
    """The residual that the answer is added to, [rows, width]."""


Target = Callable[[int, Caught], Tensor]
"""What the layer should answer, [rows, out], given a batch's number and what is there now."""


def refit_blocks(
    model: nn.Module, original: nn.Module, task: Task, batches: int, ridge: float, drift: float, log: Log
) -> dict[str, float]:  # fmt: skip
    """Refit the output projections and `down` layers of `model` in place to what `original` computes.

    Args:
        drift: share of the difference between both streams, which earlier blocks left, that is made good too.

    Returns:
        The share of the missing energy that is left after refitting, by path of the layer.

    Raises:
        TaskError: the train split is empty.
        InputError: the stacks of both do not belong together.
    """
    given = [to_device(batch, device_of(model)) for batch in itertools.islice(task.batches("train"), batches)]
    if not given:
        raise TaskError(f"task {task.name!r} has an empty train split: nothing to refit on")
    own, dense = find_parts(model), find_parts(original)
    found: dict[str, float] = {}
    for role, stack in own.stacks.items():
        other = dense.stacks.get(role)
        if other is None or other.width != stack.width:
            raise InputError(
                f"{stack.path} is {stack.width} wide, its original {getattr(other, 'width', 'missing')}: blocks are "
                "refitted where the residual width is that of the model that the recipe was given"
            )
        places = _places(model, stack, other)
        walks = [
            walk(one, [part], given, lambda batch, one=one: task.forward(one, batch))  # type: ignore[misc]
            for one, part in ((model, stack), (original, other))
        ]
        dense_walk = _Ahead(walks[1], len(other.blocks))
        for number, step in enumerate(walks[0]):
            wanted = dense_walk.at(places[number])
            found |= _refit(step, "attention", _like(wanted, "attention", drift), ridge)
            behind = places[number + 1] if number + 1 < len(places) else len(other.blocks)
            if behind > places[number] + 1 and not step.block.norms.on_residual:
                stream = dense_walk.before(behind)  # what blocks that were dropped would have added, too
                found |= _refit(step, "feed_forward", lambda n, have, s=stream: s[n] - have.beside, ridge)  # type: ignore[misc]
            else:
                found |= _refit(step, "feed_forward", _like(wanted, "feed_forward", drift), ridge)
            log.progress("refitting blocks", number + 1, len(stack.blocks))
        dense_walk.close()
    return found


def _places(model: nn.Module, stack: Stack, other: Stack) -> list[int]:
    """Return which block of the original each block was. Raises InputError where nothing says it."""
    noted = model._modules.get(NAME)
    kept = noted.lists.get(stack.owner.path) if isinstance(noted, PrunedShape) else None
    kept = list(range(len(stack.blocks))) if kept is None else kept
    if len(kept) != len(stack.blocks) or max(kept) >= len(other.blocks):
        raise InputError(
            f"{stack.path} has {len(stack.blocks)} blocks, its original {len(other.blocks)}, and no step noted which "
            "they are; cut layers by layer-drop"
        )
    return kept


class _Ahead:
    """A walk of which one block is looked at, or the stream before one."""

    def __init__(self, steps: Iterator[Step], depth: int) -> None:
        self.steps, self.depth = steps, depth
        self.here: Step | None = None

    def at(self, place: int) -> Step:
        """Go on to a block."""
        while self.here is None or self.here.block.index < place:
            self.here = next(self.steps)
        return self.here

    def before(self, place: int) -> list[Tensor]:
        """Go on and return the stream before a block, or behind the last one, [rows, width] of each batch."""
        if place < self.depth:
            return [_rows(call.hidden) for call in self.at(place).calls]
        last = self.at(self.depth - 1)
        with torch.no_grad():
            return [_rows(first_tensor(last.run(number))) for number in range(len(last.calls))]

    def close(self) -> None:
        """Let the batches go."""
        self.steps.close()  # type: ignore[attr-defined]


def _like(dense: Step, kind: str, drift: float) -> Target:
    """Return what a layer should answer: what that of the dense block does, and a share of how far streams differ."""

    def target(number: int, have: Caught) -> Tensor:
        want = _caught(dense, number, kind)
        return want.answer + drift * (want.beside - have.beside)

    return target


def _refit(step: Step, kind: str, target: Target, ridge: float) -> dict[str, float]:
    layer = _writer(step.block, kind)
    if layer is None or not isinstance(layer.module, nn.Linear) or isinstance(layer.module, Read):
        return {}  # torch's attention reads the weight and does not call the layer
    sums = Sums(layer.module)
    for number in range(len(step.calls)):
        have = _caught(step, number, kind)
        sums.add(have.inputs, target(number, have) - have.answer)
    return {layer.path: round(sums.refit(ridge), 5)}


def _writer(block: Block, kind: str) -> Part | None:
    if kind == "attention":
        return None if block.attention is None else block.attention.output
    return None if block.feed_forward is None else block.feed_forward.down


@torch.no_grad()
def _caught(step: Step, number: int, kind: str) -> Caught:
    """Run a block on one batch until the layer has answered."""
    block = step.block
    layer = _writer(block, kind)
    assert layer is not None
    seen: dict[str, Tensor] = {}
    handles = [layer.module.register_forward_hook(_keep(seen, "layer", last=True))]
    feeding = block.feed_forward
    if kind == "feed_forward" and block.attention is not None:
        output, whole = block.attention.output.module, block.attention.module
        handles.append((whole if isinstance(output, Read) else output).register_forward_hook(_keep(seen, "attention")))
        if feeding is not None:
            handles.append(feeding.up.module.register_forward_hook(_keep(seen, "up")))
    try:
        step.run(number)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    beside = _rows(step.calls[number].hidden)
    if kind == "feed_forward" and not block.norms.parallel:
        if block.norms.on_residual:
            beside = seen["up given"]
        elif "attention answered" in seen and block.norms.after_attention is None:
            beside = beside + seen["attention answered"]
    return Caught(seen["layer given"], seen["layer answered"], beside)


def _keep(seen: dict[str, Tensor], name: str, last: bool = False) -> Any:
    def hook(_module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        seen[f"{name} given"], seen[f"{name} answered"] = _rows(arguments[0]), _rows(first_tensor(output))
        if last:
            raise _Enough

    return hook


def _rows(hidden: Tensor) -> Tensor:
    return hidden.detach().flatten(0, -2)
