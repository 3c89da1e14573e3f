"""Parts of a model that answer the same whatever it is given: their answer is stored in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.folding.flow import Flow, fixed_values
from lessen.folding.fold import Fold, Found, put
from lessen.stored.constant import Constant

SMALL = 4096
"""Bytes of an answer that may be more than the part's own."""


def find(flow: Flow, others: Callable[[], Sequence[Flow]]) -> Found:
    """Return a fold for each outermost module that reads weights only, whose one answer all passes agree on.

    Args:
        others: gives passes with other inputs; asked only if there is a module to ask about.
    """
    found = Found()
    fixed = fixed_values(flow)
    inside: tuple[str, ...] = ()
    for path, module in flow.modules.items():
        if (
            not path
            or "parametrizations" in path.split(".")
            or path.startswith(inside)
            or _is_constant(module)
            or flow.calls[path] != 1
        ):
            continue
        reason = _obstacle(flow, others, path, fixed)
        if reason is None:
            found.folds.append(_answer(path, flow.answers[path]))
            inside = (*inside, f"{path}.")
        elif reason:
            found.kept[path] = reason
    return found


def find_unread(flow: Flow) -> Found:
    """Return a fold for each constant whose answer nobody reads any more: what read it has become a constant itself."""
    found = Found()
    for path, module in flow.modules.items():
        answer = flow.answers.get(path)
        if not isinstance(module, Constant) or module.value.dim() == 0 or not isinstance(answer, Tensor):
            continue
        value = flow.number_of(answer)
        if not flow.users[value] and value not in flow.returned:
            found.folds.append(_answer(path, torch.zeros((), dtype=answer.dtype, device=answer.device)))
    return found


def _obstacle(flow: Flow, others: Callable[[], Sequence[Flow]], path: str, fixed: set[int]) -> str | None:
    """Return why a module is no constant, "" where nobody would have thought so, or None."""
    steps = flow.inside(path)
    answer = flow.answers.get(path)
    if not steps or not isinstance(answer, Tensor) or not all(value in fixed for step in steps for value in step.makes):
        return ""
    if not all(_only_tensors(value) for value in flow.given[path]):
        return "is told a number by its caller"
    module = flow.modules[path]
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        return "carries forward hooks that would not run"
    found = [other.answers.get(path) for other in others()]
    if not all(isinstance(other, Tensor) and _same(other, answer) for other in found):
        return "answers other values to other inputs"
    own = sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
    size = answer.numel() * answer.element_size()
    return None if size <= max(own, SMALL) else f"its answer takes {size} bytes, its weights {own}"


def _is_constant(module: nn.Module) -> bool:
    """Tell whether a module is a constant already, alone or in a chain of layers that pass it on."""
    parts = [part for part in module.modules() if not isinstance(part, (nn.Sequential, nn.Identity, nn.Dropout))]
    return bool(parts) and all(isinstance(part, Constant) for part in parts)


def _only_tensors(value: Any) -> bool:
    return value is None or isinstance(value, Tensor)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one, other))


def _answer(path: str, answer: Tensor) -> Fold:
    value = answer.detach().clone()

    def apply(model: nn.Module) -> None:
        put(model, path, Constant.of(value))

    return Fold("constant part", path, "", apply)
