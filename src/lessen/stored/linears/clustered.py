"""Layers whose weights are few different values: a codebook, and for each weight a packed index into it.

weight (o, i) = codebook[index (o, i)]        bits a weight: ceil(log2 K), and 16 or 32 for each of K values
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import bits as packing
from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.linears.decoded import DecodedLinear
from lessen.stored.linears.sparse import MatrixConv, bias_of, empty

VALUES = {"fp32": torch.float32, "fp16": torch.float16}


@stored
class ClusteredMatrix(StoredModule):
    """State: `indices` uint8 [packed bytes], all rows one after the other without gaps; `codebook` [clusters].

    Bits of an index are those that the largest takes. Exact: a weight is the very value of its cluster.
    """

    kind = "clustered-matrix"
    indices: Tensor
    codebook: Tensor

    def __init__(self, rows: int, columns: int, clusters: int, values: str = "fp16") -> None:
        super().__init__()
        self.rows = checks.whole("rows", rows, 1, 2**24)
        self.columns = checks.whole("columns", columns, 1, 2**28)
        size = checks.elements("a weight", self.rows, self.columns)
        self.clusters = checks.whole("clusters", clusters, 2, 256)
        self.value_kind: str = checks.one_of("values", values, tuple(VALUES))
        packed = packing.row_bytes(size, self.index_bits)
        self.register_buffer("indices", torch.zeros(packed, dtype=torch.uint8))
        self.register_buffer("codebook", torch.zeros(self.clusters, dtype=VALUES[self.value_kind]))

    @property
    def index_bits(self) -> int:
        """Bits of an index."""
        return (self.clusters - 1).bit_length()

    def config(self) -> dict[str, Any]:
        """Return the sizes, the clusters and the type of their values."""
        return {"rows": self.rows, "columns": self.columns, "clusters": self.clusters, "values": self.value_kind}

    @classmethod
    def of(cls, indices: Tensor, codebook: Tensor, values: str = "fp16") -> ClusteredMatrix:
        """Pack indices [rows, columns] into a codebook float [clusters]."""
        rows, columns = indices.shape
        made = cls(rows, columns, len(codebook), values).to(codebook.device)
        made.indices.copy_(packing.pack(indices.reshape(-1), made.index_bits))
        made.codebook.copy_(codebook)
        return made

    def members(self) -> Tensor:
        """Return the index of each weight, uint8 [rows, columns]."""
        return packing.unpack(self.indices, self.index_bits, self.rows * self.columns).view(self.rows, self.columns)

    def dequantise(self) -> Tensor:
        """Return the dense matrix [rows, columns], float32."""
        return self.codebook.float()[self.members().long()]

    def check_values(self) -> None:
        """Refuse values that are not finite, and indices beyond the codebook. Raises ValueError."""
        if not bool(torch.isfinite(self.codebook).all()):
            raise ValueError("codebook holds NaN or infinity")
        checks.within("indices", self.members(), 0, self.clusters - 1)


@stored
class ClusteredLinear(DecodedLinear):
    """State: `matrix`, a `ClusteredMatrix` [out, in], and `bias` float32 [out] or none."""

    kind = "clustered-linear"
    matrix: ClusteredMatrix
    bias: Tensor | None

    def __init__(self, matrix: ClusteredMatrix, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = matrix.columns, matrix.rows
        self.matrix = matrix
        has_bias = checks.one_of("bias", bias, (True, False))
        self.register_buffer("bias", torch.zeros(matrix.rows) if has_bias else None)

    def config(self) -> dict[str, Any]:
        """Return the configuration of the matrix, and whether there is a bias."""
        return {"matrix": self.matrix.config(), "bias": self.bias is not None}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ClusteredLinear:
        """Build an empty twin. Raises ValueError or TypeError for a configuration that makes no sense."""
        return cls(empty(ClusteredMatrix, config["matrix"]), config["bias"])

    @classmethod
    def around(cls, layer: nn.Linear, matrix: ClusteredMatrix) -> ClusteredLinear:
        """Return a layer with this matrix and the bias of `layer`."""
        made = cls(matrix, bias=False)
        made.bias = bias_of(layer)
        return made

    def decoded(self, part: slice) -> Tensor:
        """Return the weights of some outputs, float32 [part, in]."""
        return self.matrix.codebook.float()[self.matrix.members()[part].long()]


@stored
class ClusteredConv(MatrixConv):
    """A convolution whose weight is a `ClusteredMatrix`."""

    kind = "clustered-conv"
    form = ClusteredMatrix


def clustered_bytes(rows: int, columns: int, clusters: int, values: str) -> int:
    """Return the bytes of a matrix in this form, found without making it."""
    with torch.device("meta"):
        made = ClusteredMatrix(rows, columns, clusters, values)
    return sum(tensor.numel() * tensor.element_size() for tensor in made.buffers())
