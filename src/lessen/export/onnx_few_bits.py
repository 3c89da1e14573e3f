"""Few-bit layers and tables inside a traced ONNX graph: encoders, towers and rankers with packed linear layers.

A layer becomes onnxruntime's MatMulNBits, which torch's exporter writes as it is told. A table unpacks the rows that it
reads, by plain operations. No value is rounded again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError
from lessen.export.codes import Coded, coded
from lessen.export.matmul_nbits import Blocks, blocks_of
from lessen.export.onnx_tables import unpacked
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.stored.tables.group_quantized import GroupQuantizedEmbedding, ScaledGroupQuantizedEmbedding


class FewBitProduct(nn.Module):
    """A layer of codes [out, in]. Raises ConfigError for rounded activations, and for minimums without a zero point."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: GroupQuantizedLinear) -> None:
        super().__init__()
        if layer.activations != "float":
            raise ConfigError(
                "a group-quantized-linear that rounds its inputs has no form in a traced ONNX graph; compress with "
                "activations=float"
            )
        blocks = _blocks(layer)
        self.bits, self.block, self.width = blocks.bits, blocks.block, blocks.inputs
        self.register_buffer("codes", torch.from_numpy(blocks.codes))
        self.register_buffer("scales", torch.from_numpy(blocks.scales))
        self.register_buffer("zeros", None if blocks.zeros is None else torch.from_numpy(blocks.zeros))
        self.register_buffer("bias", layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map float [*, in] to float [*, out] of the same type."""
        count = len(self.codes)
        given = (inputs.float(), self.codes, self.scales, *(() if self.zeros is None else (self.zeros,)))
        known: Any = {"K": self.width, "N": count, "bits": self.bits, "block_size": self.block, "accuracy_level": 0}
        product: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            given,
            known,
            dtype=torch.float32,
            shape=(*inputs.shape[:-1], count),
            version=1,
        )
        return (product if self.bias is None else product + self.bias).to(inputs.dtype)


class FewBitRows(nn.Module):
    """A table of codes [rows, dim], decoded where it is read."""

    codes: Tensor
    scales: Tensor
    minimums: Tensor | None

    def __init__(self, table: GroupQuantizedEmbedding) -> None:
        super().__init__()
        self.bits, self.dim, self.group = table.bits, table.embedding_dim, table.group
        self.factor = table.factor if isinstance(table, ScaledGroupQuantizedEmbedding) else 1.0
        for name in ("codes", "scales", "minimums"):
            self.register_buffer(name, getattr(table, name))

    def forward(self, ids: Tensor) -> Tensor:
        """Return rows [*, dim] float32."""
        rows = self._rows(ids.long())  # GatherND takes no int32
        return rows if self.factor == 1.0 else rows * self.factor

    def _rows(self, ids: Tensor) -> Tensor:
        codes = unpacked(self.codes[ids], self.bits, self.dim).float()
        scales = self._spread(self.scales[ids])
        if self.minimums is None:
            return (codes - 2.0 ** (self.bits - 1)) * scales
        return codes * scales + self._spread(self.minimums[ids])

    def _spread(self, values: Tensor) -> Tensor:
        """Return what groups share, for each column: [*, groups] to float32 [*, dim]."""
        wide = values.float().unsqueeze(-1).expand(*values.shape, self.group)
        return wide.flatten(-2)[..., : self.dim]


def _blocks(layer: Any) -> Blocks:
    weight = coded(layer)
    assert isinstance(weight, Coded)  # a group-quantized-linear always holds codes
    return blocks_of(weight, "a layer")
