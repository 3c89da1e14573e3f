"""The cases where a linear layer's forward is a kernel, and the panels that it then holds beside its stored form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from lessen.stored.kernels import machine, plain, recorded, watched
from lessen.stored.kernels.operands import Operand

KINDS = (torch.float32, torch.bfloat16, torch.float16)


class Sized(Protocol):
    """What is held beside a stored form."""

    @property
    def bytes(self) -> int:
        """Bytes that it takes."""


Made = TypeVar("Made", bound=Sized)


class Held(Generic[Made]):
    """The operand of one module, made at first use and again when a tensor of the module has changed.

    It is no part of copies and pickles: each makes its own.
    """

    def __init__(self) -> None:
        self._made: tuple[tuple[Any, ...], Made | None] | None = None

    def operand(self, tensors: Sequence[Tensor | None], make: Callable[[], Made | None]) -> Made | None:
        """Return the operand of tensors as they are now; None where no kernel takes their form."""
        version = tuple(None if one is None else (one.data_ptr(), _version(one), one.shape) for one in tensors)
        if self._made is None or self._made[0] != version:
            self._made = version, make()
        return self._made[1]

    @property
    def bytes(self) -> int:
        """Bytes that the operand takes beside the stored form."""
        return 0 if self._made is None or self._made[1] is None else self._made[1].bytes

    def __reduce__(self) -> tuple[type[Held[Any]], tuple[()]]:
        return Held, ()


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def takes(inputs: Tensor, tensors: Sequence[Tensor | None]) -> bool:
    """Tell whether a kernel may answer: float inputs on the CPU, and nobody trains, watches or records."""
    grad = torch.is_grad_enabled()
    return (
        inputs.is_cpu
        and inputs.dtype in KINDS
        and not recorded()
        and all(plain(one, grad) for one in (inputs, *tensors) if one is not None)
        and not watched()
        and machine.available()
    )


def product(operand: Operand, inputs: Tensor) -> Tensor:
    """Return float [*, out] of the inputs' type for float [*, in]."""
    rows = inputs.reshape(-1, inputs.shape[-1]).float().contiguous()
    if len(rows) == 0:
        return inputs.new_zeros(*inputs.shape[:-1], operand.outputs)
    return operand.multiply(rows).to(inputs.dtype).view(*inputs.shape[:-1], operand.outputs)
