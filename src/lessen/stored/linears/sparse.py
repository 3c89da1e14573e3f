"""Layers with a sparse weight: linear ones and convolutions. Bytes are saved on disk and in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import InputError
from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.linears.decoded import DecodedLinear
from lessen.stored.linears.sparse_matrix import SparseMatrix
from lessen.stored.linears.static_int8 import CONVOLVE, StaticInt8Conv, geometry_of


def bias_of(layer: Any) -> Tensor | None:
    """Return a copy of a layer's bias, float32, or None."""
    return None if layer.bias is None else layer.bias.detach().float().clone()


@stored
class SparseLinear(DecodedLinear):
    """State: `matrix`, a `SparseMatrix` [out, in], and `bias` float32 [out] or none. Decoded where it is multiplied."""

    kind = "sparse-linear"
    matrix: SparseMatrix
    bias: Tensor | None

    def __init__(self, matrix: SparseMatrix, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = matrix.columns, matrix.rows
        self.matrix = matrix
        has_bias = checks.one_of("bias", bias, (True, False))
        self.register_buffer("bias", torch.zeros(matrix.rows) if has_bias else None)

    def config(self) -> dict[str, Any]:
        """Return the configuration of the matrix, and whether there is a bias."""
        return {"matrix": self.matrix.config(), "bias": self.bias is not None}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SparseLinear:
        """Build an empty twin. Raises ValueError or TypeError for a configuration that makes no sense."""
        return cls(_empty(config["matrix"]), config["bias"])

    @classmethod
    def around(cls, layer: nn.Linear, matrix: SparseMatrix) -> SparseLinear:
        """Return a layer with this matrix and the bias of `layer`."""
        made = cls(matrix, bias=False)
        made.bias = bias_of(layer)
        return made

    def decoded(self, part: slice) -> Tensor:
        """Return the weights of some outputs, float32 [part, in]."""
        return self.matrix.decoded(part)


@stored
class SparseConv(StoredModule):
    """A convolution whose weight is a `SparseMatrix` [out, kernel sides, in / groups]: input channels lie last, so that
    runs of N of M go along them. State: `matrix`, and `bias` float32 [out] or none. Decoded where it is used.
    """

    kind = "sparse-conv"
    matrix: SparseMatrix
    bias: Tensor | None

    def __init__(self, geometry: Mapping[str, Any], matrix: SparseMatrix) -> None:
        super().__init__()
        with torch.device("meta"):
            shape = StaticInt8Conv.from_config(geometry)  # it checks sizes, and knows torch's arguments
        self.geometry = shape.config()
        self.stride, self.padding, self.dilation, self.groups = (
            shape.stride,
            shape.padding,
            shape.dilation,
            shape.groups,
        )
        self.sides = shape.kernel_size
        self.in_channels, self.out_channels = shape.in_channels, shape.out_channels
        if (matrix.rows, matrix.columns) != (shape.out_channels, shape.codes[0].numel()):
            raise ValueError(f"a matrix of {matrix.rows} x {matrix.columns} is not the weight of this convolution")
        self.matrix = matrix
        self.register_buffer("bias", torch.zeros(shape.out_channels) if shape.bias is not None else None)

    def config(self) -> dict[str, Any]:
        """Return the arguments of the convolution and the configuration of the matrix."""
        return {"geometry": self.geometry, "matrix": self.matrix.config()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SparseConv:
        """Build an empty twin. Raises ValueError or TypeError for a configuration that makes no sense."""
        if not isinstance(config["geometry"], Mapping):
            raise TypeError(f"geometry must be the arguments of a convolution, found {config['geometry']!r}")
        return cls(config["geometry"], _empty(config["matrix"]))

    @classmethod
    def around(cls, layer: Any, matrix: SparseMatrix) -> SparseConv:
        """Return a convolution like `layer` with this matrix."""
        made = cls(geometry_of(layer), matrix)
        made.bias = bias_of(layer)
        return made

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in / groups, kernel sides], float32."""
        return from_matrix(self.matrix.dequantise(), self.sides)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map float [batch, in, *] to [batch, out, *] of the same type. Raises InputError for other channels."""
        if inputs.shape[1 if inputs.dim() > 1 + len(self.sides) else 0] != self.in_channels:
            raise InputError(f"a convolution of {self.in_channels} channels was given {list(inputs.shape)}")
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        convolve: Any = CONVOLVE[len(self.sides)]
        weight = self.dequantise().to(inputs.dtype)
        outputs: Tensor = convolve(inputs, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return outputs


def to_matrix(weight: Tensor) -> Tensor:
    """Return a weight [out, in, kernel sides] as a matrix [out, sides * in], channels last; a linear one as it is."""
    return weight.movedim(1, -1).flatten(1)


def from_matrix(matrix: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Return the weight [out, in, kernel sides] of a matrix; undoes `to_matrix`."""
    return matrix.view(len(matrix), *sides, -1).movedim(-1, 1).contiguous()


def _empty(config: Any) -> SparseMatrix:
    if not isinstance(config, Mapping):
        raise TypeError(f"matrix must be a configuration, found {config!r}")
    return SparseMatrix(**config)
