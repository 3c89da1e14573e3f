"""Backward passes of a task's loss through a model, for layers that watch them; no parameter is given a gradient.

    batch ─ block 0 ... block f-1 ─┤ block f ├ ... ─┤ block n ├─ norm, head, loss
            forward only             inputs are kept             graph 1: the loss's slope at the last block's output
                                   ←──── graph 2, 3, ...: one block at a time, its forward run again with a graph

Held at once: the inputs of blocks f to n for one batch, and one graph: that of a block, or of what follows the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.parts import Block
from lessen.errors import InputError
from lessen.methods.blockwise import Call, without_cache
from lessen.methods.calibration import watching
from lessen.methods.sites import Site
from lessen.methods.weights._shared.curvature import given_to
from lessen.task import Task

SCALE = 4096.0
"""Factor of the loss of fp16 models, whose small slopes would vanish; the curvature's scale changes nothing."""


def backward_through_all(model: nn.Module, task: Task, batch: Any, sites: Sequence[Site]) -> None:
    """Send the loss of a batch backward through the whole model; layers at `sites` start its graph.

    Held at once: the graph of the whole model for one batch.
    """
    with watching([(site.module, _start) for site in sites]):
        _loss_backward(model, task, batch)


def _start(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Let a graph begin at the inputs of a layer, unless it began before."""
    given = given_to(arguments, keywords)
    if given.requires_grad:
        return None
    given = given.detach().requires_grad_()
    return ((given, *arguments[1:]), keywords) if arguments else (arguments, {**keywords, "input": given})


def _loss_backward(model: nn.Module, task: Task, batch: Any) -> None:
    """Send a loss through whatever graph its forward made, if it made one."""
    with torch.enable_grad():
        loss = task.loss(model, batch) * _scale(model)
        if loss.requires_grad:
            torch.autograd.backward(loss)


def backward_through_blocks(model: nn.Module, task: Task, batch: Any, blocks: Sequence[Block], first: int) -> None:
    """Send the loss of a batch backward through `blocks` from the last to number `first`, one graph at a time.

    Args:
        blocks: all blocks of the model's one stack, in the order in which they are called.

    Raises:
        InputError: a block is called twice, never, or does not return hidden states first.
    """
    calls, last = _forward(model, task, batch, blocks, first)
    slope = last.grad
    if slope is None:
        raise InputError(f"the loss does not depend on what {blocks[-1].path} returns; take hessian=input")
    for number in range(len(blocks) - 1, first - 1, -1):
        call = calls.pop(number)
        hidden = call.hidden.detach().requires_grad_()
        with torch.enable_grad():
            output = _hidden_of(blocks[number].module(*_with_hidden(call, hidden), **call.keywords), blocks[number])
            torch.autograd.backward(output, slope)
        if hidden.grad is None:
            raise InputError(f"{blocks[number].path} hands no gradient on to the block before it; take hessian=input")
        slope = hidden.grad


def _forward(
    model: nn.Module, task: Task, batch: Any, blocks: Sequence[Block], first: int
) -> tuple[dict[int, Call], Tensor]:
    """Return the calls of blocks from `first` on, and the last one's output with the loss's slope in its `grad`."""
    calls: dict[int, Call] = {}
    leaves: list[Tensor] = []

    def before(number: int) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            if number in calls:
                raise InputError(f"{blocks[number].path} is called twice in one forward; take hessian=input")
            call = Call(tuple(map(without_cache, arguments)), {k: without_cache(v) for k, v in keywords.items()})
            if number >= first:
                calls[number] = call
            return call.arguments, call.keywords

        return hook

    def after(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        leaves.append(_hidden_of(output, blocks[-1]).detach().requires_grad_())
        return leaves[0] if isinstance(output, Tensor) else (leaves[0], *output[1:])

    handles: list[Any] = [blocks[-1].module.register_forward_hook(after)]
    handles += [
        block.module.register_forward_pre_hook(before(number), with_kwargs=True) for number, block in enumerate(blocks)
    ]
    try:
        _loss_backward(model, task, batch)
    finally:
        for handle in handles:
            handle.remove()
    if set(calls) != set(range(first, len(blocks))) or len(leaves) != 1:
        raise InputError(f"the forward does not call each of the {len(blocks)} blocks once; take hessian=input")
    return calls, leaves[0]


def _with_hidden(call: Call, hidden: Tensor) -> tuple[Any, ...]:
    if call.arguments:
        return (hidden, *call.arguments[1:])
    call.keywords["hidden_states"] = hidden
    return ()


def _hidden_of(output: Any, block: Block) -> Tensor:
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor):
        raise InputError(f"{block.path} returns a {type(hidden).__name__}, not hidden states; take hessian=input")
    return hidden


def _scale(model: nn.Module) -> float:
    return SCALE if any(parameter.dtype == torch.float16 for parameter in model.parameters()) else 1.0


@contextmanager
def without_parameters(model: nn.Module) -> Iterator[None]:
    """Let no parameter take part in graphs; flags and training mode are as before afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    was_training = model.training
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(was_training)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
