"""A part of a model whose answer depends on no input: the answer itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored

_MOST_AXES = 8


@stored
class Constant(StoredModule):
    """State: `value`, what the part answered. It takes any arguments and answers a copy, which a caller may change."""

    kind = "constant"
    value: Tensor

    def __init__(self, shape: list[int] | tuple[int, ...] = ()) -> None:
        super().__init__()
        if not isinstance(shape, (list, tuple)) or len(shape) > _MOST_AXES:
            raise TypeError(f"shape must be a list of at most {_MOST_AXES} sides, found {shape!r}")
        sides = tuple(checks.whole("a side of shape", side, 0, checks.MAX_SIDE) for side in shape)
        checks.elements("a constant", *sides)
        self.register_buffer("value", torch.zeros(sides))

    def config(self) -> dict[str, Any]:
        """Return the shape."""
        return {"shape": list(self.value.shape)}

    @classmethod
    def of(cls, value: Tensor) -> Constant:
        """Return a module that answers `value` [*]."""
        made = cls(tuple(value.shape))
        made.value = value.detach().clone()
        return made

    def forward(self, *_arguments: Any, **_keywords: Any) -> Tensor:
        """Answer the constant, whatever is given."""
        return self.value.clone()

    def dequantise(self) -> Tensor:
        """Return the value, float32."""
        return self.value.float()
