"""Row-wise tables as FBGEMM reads them: fp16 scale and bias first, then the codes, one uint8 matrix a table."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError
from lessen.files import atomic_write
from lessen.methods.embeddings._shared.budget import tables_of
from lessen.stored import bits as packing
from lessen.stored.tables import rowwise
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding

BLOCK = 1 << 20
"""Rows that are compared at a time."""


def export_fbgemm(model: nn.Module, path: Path) -> float:
    """Write the row-wise tables of `model` to a new safetensors file; return the largest difference of a value.

    Each tensor is named as its table and is uint8 [rows, 4 + codes], little-endian: scale fp16, bias fp16, codes with
    element 0 in the low bits, as `IntNBitTableBatchedEmbeddingBagsCodegen` of FBGEMM stores rows on CPUs (row
    alignment 1). The metadata key `tables` is a JSON object of `bits`, `rows` and `dim` by name. 8 bit rows lose the
    digits of their parameters beyond fp16; the other tables and layers of the model are not written.

    Raises:
        ConfigError: no table has 8, 4 or 2 bit rows, one sits behind an id map, or its parameters overflow fp16.
        OutputError: the file cannot be written.
    """
    from safetensors.torch import save

    rows, described, difference = {}, {}, 0.0
    for name, table in _tables(model).items():
        try:
            rows[name] = rowwise.fbgemm_rows(table.packed, table.bits)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
        described[name] = {"bits": table.bits, "rows": table.num_embeddings, "dim": table.embedding_dim}
        for written, packed in zip(torch.split(rows[name], BLOCK), torch.split(table.packed, BLOCK), strict=True):
            own = rowwise.unpack(packed, table.embedding_dim, table.bits)
            difference = max(difference, float((values(written, table.embedding_dim, table.bits) - own).abs().max()))
    atomic_write(path, save(rows, metadata={"tables": json.dumps(described, sort_keys=True)}))
    return difference


def values(rows: Tensor, dim: int, bits: int) -> Tensor:
    """Return the float32 values [n, dim] that FBGEMM reads from rows uint8 [n, 4 + codes]."""
    parameters = rows[:, :4].contiguous().view(torch.float16).float()
    codes = packing.unpack(rows[:, 4:], bits, dim)
    return codes.float() * parameters[:, :1] + parameters[:, 1:]


def _tables(model: nn.Module) -> dict[str, QuantizedEmbedding]:
    whole = {id(table) for table in tables_of(model)}
    found: dict[str, QuantizedEmbedding] = {}
    for path, module in model.named_modules():
        if isinstance(module, QuantizedEmbedding):
            if id(module) not in whole:
                raise ConfigError(f"{path} sits behind a map of ids, which FBGEMM rows cannot hold; renumber the model")
            found[path or "table"] = module
    if not found:
        raise ConfigError("the model has no table of 8, 4 or 2 bit rows; apply emb-rowwise-quant first")
    return found
