"""Base of linear layers that are storage only: a forward decodes some outputs at a time and multiplies densely."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from lessen.errors import InputError
from lessen.stored.base import StoredModule

DECODED = 2**20
"""Weights that a forward decodes at a time."""


class DecodedLinear(StoredModule):
    """Bytes are saved on disk and in memory, time is not. A subclass says what its outputs' weights are."""

    in_features: int
    out_features: int
    bias: Tensor | None

    @abstractmethod
    def decoded(self, part: slice) -> Tensor:
        """Return the weights of some outputs, float32 [part, in]."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Map float [*, in] to [*, out] of the same type. Raises InputError for inputs of another width."""
        if inputs.shape[-1] != self.in_features:
            raise InputError(f"a layer of {self.in_features} inputs was given {inputs.shape[-1]}")
        return self.decoded_product(inputs)

    def decoded_product(self, inputs: Tensor) -> Tensor:
        """Map float [*, in] to [*, out] of the same type by dense products of decoded weights."""
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        outputs = [
            functional.linear(inputs, self.decoded(part).to(inputs.dtype), None if bias is None else bias[part])
            for part in row_parts(self.out_features, self.in_features)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in], float32."""
        return torch.cat([self.decoded(part) for part in row_parts(self.out_features, self.in_features)])


def row_parts(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows of at most `DECODED` values each, and of at least one row."""
    step = max(1, DECODED // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
