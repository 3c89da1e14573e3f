"""Convolutional networks: which batch norm follows which convolution, what is depthwise, and where the picture shrinks.

Order of definition is no proof that one layer feeds the other, so pairs are seen in one pass over an example: a norm
belongs to a convolution when it reads exactly what that convolution gave, and nobody else does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.parts import Part
from lessen.errors import InputError, NothingMatchedError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Convolution:
    """One convolution, in the order of calls."""

    part: Part
    norm: Part | None
    """The batch norm that reads what it gives, if only that does."""
    stage: int
    """Number of times that the picture had shrunk before its output; blocks of one stage have equal sizes."""
    calls: int
    """Times that one forward calls it; a shared convolution is called more than once."""

    @property
    def depthwise(self) -> bool:
        """Whether each channel is filtered by itself."""
        layer = self.part.module
        return bool(layer.groups == layer.in_channels and layer.groups > 1)


def find_convolutions(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[Convolution]:
    """Return the convolutions that one forward calls, in that order; the model is not changed.

    Args:
        run: calls the model on an example, such as `lambda model: task.forward(model, task.example_batch())`.

    Raises:
        NothingMatchedError: the model holds no convolution; names what it holds.
        InputError: the forward calls none of them.
    """
    paths = {module: path for path, module in model.named_modules()}
    if not any(isinstance(module, CONVOLUTIONS) for module in paths):
        held = ", ".join(sorted({type(module).__name__ for module in paths if module is not model})[:12])
        raise NothingMatchedError(f"no convolution: {type(model).__name__} holds {held or 'no layers'}")
    seen = _watched(model, run)
    if not seen.calls:
        raise InputError(f"the forward of {type(model).__name__} calls none of its convolutions")
    sizes = sorted(set(seen.sizes.values()), reverse=True)
    return [
        Convolution(
            Part(paths[layer], layer), _norm(layer, seen, paths), sizes.index(seen.sizes[layer]), seen.calls[layer]
        )
        for layer in seen.calls
    ]


class _Seen:
    """What one forward showed: outputs by identity, who read them, sizes and counts of calls."""

    def __init__(self) -> None:
        self.calls: dict[Any, int] = {}
        self.sizes: dict[Any, int] = {}
        self.made: dict[int, Any] = {}
        self.readers: dict[Any, list[Any]] = {}
        self.kept: list[Tensor] = []
        """Outputs stay alive during the pass, so that no identity is given twice."""


def _watched(model: nn.Module, run: Callable[[nn.Module], Any]) -> _Seen:
    seen, handles, was_training = _Seen(), [], model.training

    def before(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        for value in arguments:
            if isinstance(value, Tensor) and id(value) in seen.made:
                seen.readers.setdefault(seen.made[id(value)], []).append(layer)

    def after(layer: nn.Module, _arguments: Any, output: Any) -> None:
        if isinstance(layer, CONVOLUTIONS) and isinstance(output, Tensor):
            seen.calls[layer] = seen.calls.get(layer, 0) + 1
            seen.sizes[layer] = int(output[0, 0].numel())
            seen.made[id(output)] = layer
            seen.kept.append(output)

    for module in model.modules():
        if not any(True for _ in module.children()):
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.no_grad():
            run(model.eval())
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return seen


def _norm(layer: Any, seen: _Seen, paths: dict[nn.Module, str]) -> Part | None:
    readers = seen.readers.get(layer, [])
    if len(readers) != 1 or seen.calls[layer] != 1 or not isinstance(readers[0], NORMS):
        return None
    return Part(paths[readers[0]], readers[0])
