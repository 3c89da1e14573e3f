"""Layers with a sparse weight: linear ones, which a kernel multiplies where values are int8, and convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from lessen.errors import InputError
from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.integers import products
from lessen.stored.kernels import sparse_products
from lessen.stored.kernels.linear import Held, takes
from lessen.stored.kernels.sparse_products import SparseOperand
from lessen.stored.linears.decoded import DecodedLinear, row_parts
from lessen.stored.linears.sparse_matrix import SparseMatrix
from lessen.stored.linears.static_int8 import CONVOLVE, StaticInt8Conv, geometry_of

LEAST = 1e-30
"""Size of a row of inputs below which it counts as that large."""


def bias_of(layer: Any) -> Tensor | None:
    """Return a copy of a layer's bias, float32, or None."""
    return None if layer.bias is None else layer.bias.detach().float().clone()


ACTIVATIONS = ("float", "int8")


@stored
class SparseLinear(DecodedLinear):
    """State: `matrix`, a `SparseMatrix` [out, in], and `bias` float32 [out] or none.

    `activations`:
        "float"   inputs as they come; the weight is decoded where it is multiplied. Bytes are saved, time is not.
        "int8"    inputs rounded to int8, a scale a row, as `Int8Linear` does; for int8 values only. Products are of the
                  packed values with the extra `kernels` and AVX-512 VBMI2 (`kernels.sparse_products`), else of decoded
                  codes. Both give what an `Int8Linear` of the same codes gives, bit for bit.
    The decoded weight is used where a gradient with respect to the input is asked for.
    """

    kind = "sparse-linear"
    matrix: SparseMatrix
    bias: Tensor | None

    def __init__(self, matrix: SparseMatrix, bias: bool = True, activations: str = "float") -> None:
        super().__init__()
        self.in_features, self.out_features = matrix.columns, matrix.rows
        self.activations = str(checks.one_of("activations", activations, ACTIVATIONS))
        if self.activations == "int8" and matrix.scales is None:
            raise ValueError(f"activations of int8 need int8 values, found {matrix.value_kind}")
        self.matrix = matrix
        has_bias = checks.one_of("bias", bias, (True, False))
        self.register_buffer("bias", torch.zeros(matrix.rows) if has_bias else None)
        self._held: Held[SparseOperand] = Held()

    def config(self) -> dict[str, Any]:
        """Return the configuration of the matrix, whether there is a bias, and how inputs are taken."""
        return {"matrix": self.matrix.config(), "bias": self.bias is not None, "activations": self.activations}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SparseLinear:
        """Build an empty twin. Raises ValueError or TypeError for a configuration that makes no sense."""
        return cls(empty(SparseMatrix, config["matrix"]), config["bias"], config["activations"])

    @classmethod
    def around(cls, layer: nn.Linear, matrix: SparseMatrix, activations: str = "float") -> SparseLinear:
        """Return a layer with this matrix and the bias of `layer`."""
        made = cls(matrix, bias=False, activations=activations)
        made.bias = bias_of(layer)
        return made

    def decoded(self, part: slice) -> Tensor:
        """Return the weights of some outputs, float32 [part, in]."""
        return self.matrix.decoded(part)

    def forward(self, input: Tensor) -> Tensor:
        """Map float [*, in] to [*, out] of the same type. Raises InputError for inputs of another width."""
        if self.activations == "float" or (torch.is_grad_enabled() and input.requires_grad):
            return super().forward(input)
        if input.shape[-1] != self.in_features:
            raise InputError(f"a layer of {self.in_features} inputs was given {input.shape[-1]}")
        flat = input.reshape(-1, self.in_features).float().contiguous()
        operand = self.operand() if len(flat) and takes(input, tuple(self.buffers())) else None
        wide = self._decoded_codes(flat) if operand is None else operand.multiply(flat)
        return wide.to(input.dtype).reshape(*input.shape[:-1], self.out_features)

    def operand(self) -> SparseOperand | None:
        """Return the layer as the kernel takes it, made where it changed; None where there is no kernel for it."""
        scales = self.matrix.scales
        if self.activations == "float" or scales is None or scales.dtype != torch.float32:
            return None
        if not sparse_products.possible() or not scales.is_cpu:
            return None
        return self._held.operand(tuple(self.buffers()), self._operand)

    def _operand(self) -> SparseOperand:
        whole, matrix = slice(0, self.out_features), self.matrix
        assert matrix.scales is not None
        return SparseOperand.of(matrix.held(whole), matrix.mask(whole), matrix.scales, self.bias)

    def _decoded_codes(self, flat: Tensor) -> Tensor:
        """Do what the kernel does, codes decoded some outputs at a time."""
        step = flat.abs().amax(dim=1, keepdim=True).clamp_(min=LEAST) / 127.0
        rows = (flat / step).round_()
        parts = row_parts(self.out_features, self.in_features)
        sums = torch.cat([products(rows, self.matrix.held(part)) for part in parts], dim=1)
        assert self.matrix.scales is not None
        bias = flat.new_zeros(()) if self.bias is None else self.bias
        return torch.addcmul(bias, sums, step * self.matrix.scales)

    def storage_only(self) -> bool:
        """Tell whether no kernel takes this form here."""
        return self.operand() is None

    def packed_bytes(self) -> int:
        """Return the bytes of what the kernel reads, or of the decoded weight, held beside the buffers."""
        return self._held.bytes + super().packed_bytes()

    def opaque_macs(self, *inputs: Any) -> int:
        """Return multiply-adds of one forward in int8, which the flop counter does not see; zeros take part."""
        if self.activations == "float":
            return 0
        return int(inputs[0].numel() // self.in_features) * self.in_features * self.out_features


Made = TypeVar("Made", bound="MatrixConv")


class MatrixConv(StoredModule):
    """Base of convolutions whose weight is a stored matrix [out, kernel sides * in / groups], input channels last.

    State: `matrix`, and `bias` float32 [out] or none. Decoded where it is used: bytes are saved, time is not.
    """

    form: ClassVar[Any]
    """The stored matrix: it has `rows`, `columns`, `config` and `dequantise`."""
    matrix: Any
    bias: Tensor | None

    def __init__(self, geometry: Mapping[str, Any], matrix: Any) -> None:
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
    def from_config(cls: type[Made], config: Mapping[str, Any]) -> Made:
        """Build an empty twin. Raises ValueError or TypeError for a configuration that makes no sense."""
        if not isinstance(config["geometry"], Mapping):
            raise TypeError(f"geometry must be the arguments of a convolution, found {config['geometry']!r}")
        return cls(config["geometry"], empty(cls.form, config["matrix"]))

    @classmethod
    def around(cls: type[Made], layer: Any, matrix: Any) -> Made:
        """Return a convolution like `layer` with this matrix."""
        made = cls(geometry_of(layer), matrix)
        made.bias = bias_of(layer)
        return made

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in / groups, kernel sides], float32."""
        return from_matrix(self.matrix.dequantise(), self.sides)

    def forward(self, input: Tensor) -> Tensor:
        """Map float [batch, in, *] to [batch, out, *] of the same type. Raises InputError for other channels."""
        if input.shape[1 if input.dim() > 1 + len(self.sides) else 0] != self.in_channels:
            raise InputError(f"a convolution of {self.in_channels} channels was given {list(input.shape)}")
        bias = None if self.bias is None else self.bias.to(input.dtype)
        convolve: Any = CONVOLVE[len(self.sides)]
        weight = self.dequantise().to(input.dtype)
        outputs: Tensor = convolve(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return outputs


@stored
class SparseConv(MatrixConv):
    """A convolution whose weight is a `SparseMatrix`: runs of N of M go along its input channels."""

    kind = "sparse-conv"
    form = SparseMatrix


def to_matrix(weight: Tensor) -> Tensor:
    """Return a weight [out, in, kernel sides] as a matrix [out, sides * in], channels last; a linear one as it is."""
    return weight.movedim(1, -1).flatten(1)


def from_matrix(matrix: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Return the weight [out, in, kernel sides] of a matrix; undoes `to_matrix`."""
    return matrix.view(len(matrix), *sides, -1).movedim(-1, 1).contiguous()


def empty(form: Any, config: Any) -> Any:
    """Return an empty matrix of a stored form. Raises ValueError or TypeError for a configuration without sense."""
    if not isinstance(config, Mapping):
        raise TypeError(f"matrix must be a configuration, found {config!r}")
    return form(**config)
