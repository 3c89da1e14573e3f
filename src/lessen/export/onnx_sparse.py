"""Sparse layers inside an ONNX graph: the same kept values and places, spread out where they are used.

bits    uint8 [rows, bytes] -> a bit a place -> how many were set before -> Gather of the values, else 0
places  uint8 [rows, bytes] -> columns -> ScatterElements of the values into zeros

The file holds what the artifact holds. A runtime that folds constants holds the dense weight once it has loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.export.onnx_tables import unpacked
from lessen.stored.linears.clustered import ClusteredLinear, ClusteredMatrix
from lessen.stored.linears.sparse import MatrixConv, SparseLinear, from_matrix
from lessen.stored.linears.sparse_matrix import SparseMatrix
from lessen.stored.linears.static_int8 import CONVOLVE


class Spread(nn.Module):
    """A sparse matrix; `forward()` gives it dense, float32 [rows, columns]."""

    def __init__(self, matrix: SparseMatrix) -> None:
        super().__init__()
        self.source = matrix

    def forward(self) -> Tensor:
        """Return the dense matrix."""
        matrix = self.source
        values = matrix.values.float()
        if matrix.places is not None:
            dense = self._of_runs(matrix, values)
        elif len(values):
            marks = unpacked(matrix.bits, 1, matrix.columns).long()  # type: ignore[arg-type]
            before = (marks.reshape(-1).cumsum(0) - 1).clamp(min=0).reshape(marks.shape)
            dense = values[before] * marks
        else:
            dense = torch.zeros(matrix.rows, matrix.columns)
        return dense if matrix.scales is None else dense * matrix.scales.unsqueeze(1)

    @staticmethod
    def _of_runs(matrix: SparseMatrix, values: Tensor) -> Tensor:
        assert matrix.places is not None
        width, count = matrix.place_bits, matrix.kept_a_row
        places = codes(matrix.places, width, count)
        first = torch.arange(count) // (matrix.n or 1) * (matrix.m or 1)
        zeros = torch.zeros(matrix.rows, matrix.columns)
        return zeros.scatter(1, places + first, values.reshape(matrix.rows, count))


class Chosen(Spread):
    """A clustered matrix: the value of each index; `forward()` gives it dense, float32 [rows, columns]."""

    def __init__(self, matrix: ClusteredMatrix) -> None:
        nn.Module.__init__(self)
        self.clustered = matrix

    def forward(self) -> Tensor:
        """Return the dense matrix."""
        matrix, width = self.clustered, self.clustered.index_bits
        count = matrix.rows * matrix.columns
        return matrix.codebook.float()[codes(matrix.indices, width, count)].reshape(matrix.rows, matrix.columns)


def codes(packed: Tensor, width: int, count: int) -> Tensor:
    """Return the first `count` codes of so many bits of packed bytes [*, bytes], int64 [*, count]."""
    if 8 % width == 0:
        return unpacked(packed, width, count).long()
    single = unpacked(packed, 1, count * width).long()  # codes cross bytes: single bits first
    single = single.reshape(*packed.shape[:-1], count, width)
    return (single * torch.tensor([2**bit for bit in range(width)])).sum(-1)


class SpreadLinear(nn.Module):
    """A sparse or clustered linear layer, its matrix spread already; inputs of int8 activations are rounded."""

    bias: Tensor | None

    def __init__(self, layer: SparseLinear | ClusteredLinear) -> None:
        super().__init__()
        self.matrix = layer.matrix
        self.rounds = isinstance(layer, SparseLinear) and layer.activations == "int8"
        self.register_buffer("bias", layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map float [*, in] to [*, out]."""
        if self.rounds:
            step = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127.0
            inputs = torch.round(inputs / step) * step
        return functional.linear(inputs, self.matrix(), self.bias)


class SpreadConv(nn.Module):
    """A sparse or clustered convolution, its matrix spread already."""

    def __init__(self, layer: MatrixConv) -> None:
        super().__init__()
        self.layer, self.matrix = layer, layer.matrix

    def forward(self, inputs: Tensor) -> Tensor:
        """Map float [batch, in, *] to [batch, out, *]."""
        one = self.layer
        weight = from_matrix(self.matrix(), one.sides)
        outputs: Tensor = CONVOLVE[len(one.sides)](
            inputs, weight, one.bias, one.stride, one.padding, one.dilation, one.groups
        )
        return outputs
