"""Base of linear layers that are decoded: a forward decodes some outputs at a time and multiplies densely.

A model that is served decodes once (`hold`, called by `stored.serving`): the dense weight is kept beside the codes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lessen.errors import InputError
from lessen.stored.base import StoredModule
from lessen.stored.kernels.linear import Held

DECODED = 2**20
"""Weights that a forward decodes at a time."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A decoded weight [out, in]."""

    weight: Tensor

    @property
    def bytes(self) -> int:
        """Bytes of the weight."""
        return self.weight.nbytes


class DecodedLinear(StoredModule):
    """Bytes are saved on disk and in memory, time is not. A subclass says what its outputs' weights are."""

    in_features: int
    out_features: int
    bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self._dense: Held[Dense] = Held()
        self._holding: torch.dtype | None = None

    @abstractmethod
    def decoded(self, part: slice) -> Tensor:
        """Return the weights of some outputs, float32 [part, in]."""

    def forward(self, input: Tensor) -> Tensor:
        """Map float [*, in] to [*, out] of the same type. Raises InputError for inputs of another width."""
        if input.shape[-1] != self.in_features:
            raise InputError(f"a layer of {self.in_features} inputs was given {input.shape[-1]}")
        return self.decoded_product(input)

    def storage_only(self) -> bool:
        """Tell that every forward decodes."""
        return True

    def hold(self, dtype: torch.dtype | None) -> None:
        """Keep the weight decoded in a type, from now on; None: let it go."""
        self._holding = dtype
        if dtype is None:
            self._dense = Held()
        else:
            self._held_weight(dtype)

    def packed_bytes(self) -> int:
        """Return the bytes of the weight that is held decoded beside the buffers."""
        return self._dense.bytes

    def _held_weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight, decoded anew where a buffer changed."""
        with torch.inference_mode(False), torch.no_grad():
            found = self._dense.operand(tuple(self.buffers()), lambda: Dense(self._whole(dtype)))
        assert found is not None
        return found.weight

    def decoded_product(self, inputs: Tensor) -> Tensor:
        """Map float [*, in] to [*, out] of the same type by dense products of decoded weights."""
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        if self._holding in (torch.float32, inputs.dtype):
            return functional.linear(inputs, self._held_weight(self._holding).to(inputs.dtype), bias)
        outputs = [
            functional.linear(inputs, self.decoded(part).to(inputs.dtype), None if bias is None else bias[part])
            for part in row_parts(self.out_features, self.in_features)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in], float32."""
        return self._whole(torch.float32)

    def _whole(self, dtype: torch.dtype) -> Tensor:
        parts = row_parts(self.out_features, self.in_features)
        return torch.cat([self.decoded(part).to(dtype) for part in parts])


def row_parts(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows of at most `DECODED` values each, and of at least one row."""
    step = max(1, DECODED // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
