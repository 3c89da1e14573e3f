"""Quantised tables larger than memory: written row block by row block, opened by mapping the file.

The file is an ordinary safetensors file with one uint8 tensor `packed` and the table's configuration in its metadata:

    8 bytes header length | JSON header, padded to 8 | packed rows
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lessen import files
from lessen.errors import ArtifactError, DataError, NonFiniteError
from lessen.log import SILENT, Log
from lessen.stored.tables import rowwise
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.quantized_embedding import QuantizedEmbedding

MAX_HEADER = 1 << 20


def write_quantized(
    path: Path,
    shape: TableShape,
    blocks: Iterable[Tensor],
    bits: int,
    *,
    ranges: rowwise.Ranges = "plain",
    log: Log = SILENT,
) -> int:
    """Quantise float32 blocks of rows [n, dim], in order, to the new file `path`; return its bytes.

    One block is held in memory at a time. The file appears whole or not at all.

    Raises:
        DataError: the blocks do not add up to the rows of the shape, or have another width.
        NonFiniteError: NaN or infinity in a block, named by its first row.
        OutputError: the place cannot be written.
    """
    width = rowwise.row_bytes(shape.dim, bits)
    with files.atomic_stream(path) as handle:
        files.FILES.write(handle, _header(shape, bits, width))
        _write_rows(handle, shape, blocks, bits, ranges, log)
    return path.stat().st_size


def _write_rows(
    handle: BinaryIO, shape: TableShape, blocks: Iterable[Tensor], bits: int, ranges: rowwise.Ranges, log: Log
) -> None:
    done = 0
    log.progress("quantising rows", done, shape.rows)
    for block in blocks:
        if block.dim() != 2 or block.shape[1] != shape.dim or done + len(block) > shape.rows:
            raise DataError(
                f"block at row {done} has shape {list(block.shape)}; the table is {shape.rows} x {shape.dim}"
            )
        if not bool(torch.isfinite(block).all()):
            raise NonFiniteError(f"NaN or infinity in the block that starts at row {done}; repair the table first")
        if not rowwise.representable(block, bits):
            raise DataError(f"rows after {done} reach beyond what {bits} bit row parameters hold; use 8 bits")
        files.FILES.write(handle, rowwise.pack(block, bits, ranges).numpy().tobytes())
        done += len(block)
        log.progress("quantising rows", done, shape.rows)
    if done != shape.rows:
        raise DataError(f"the blocks hold {done} rows, the table has {shape.rows}")


def _header(shape: TableShape, bits: int, width: int) -> bytes:
    config = json.dumps({**shape.config(), "bits": bits})
    body = {
        "__metadata__": {"kind": QuantizedEmbedding.kind, "config": config},
        "packed": {"dtype": "U8", "shape": [shape.rows, width], "data_offsets": [0, shape.rows * width]},
    }
    raw = json.dumps(body, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def open_quantized(path: Path) -> QuantizedEmbedding:
    """Map a file of `write_quantized` and return a table that reads rows from disk as they are looked up.

    Opening reads the header only. Pages are shared between processes and dropped by the system under pressure.

    Raises:
        ArtifactError: the file is missing, cut, or not of this kind.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = struct.unpack("<Q", handle.read(8))[0] if size >= 8 else MAX_HEADER + 1
            raw = handle.read(length) if length <= min(MAX_HEADER, size - 8) else b""
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    if not raw:
        raise ArtifactError(f"{path} is not a mapped table: its header is missing or longer than the file")
    made = _from_header(files.parse_json(raw, str(path)), path)
    shape = (made.num_embeddings, rowwise.row_bytes(made.embedding_dim, made.bits))
    if size != 8 + length + math.prod(shape):
        raise ArtifactError(f"{path} has {size} bytes, its header says {8 + length + math.prod(shape)}; copy it again")
    # a private mapping: pages are shared until someone writes, and nothing is ever written back
    mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    made.packed = mapped[8 + length :].view(shape)
    return made


def _from_header(header: Any, path: Path) -> QuantizedEmbedding:
    """Build the table that a header describes, without memory for its rows."""
    try:
        metadata, tensor = header["__metadata__"], header["packed"]
        if metadata["kind"] != QuantizedEmbedding.kind or set(header) != {"__metadata__", "packed"}:
            raise ValueError("it holds something else")
        with torch.device("meta"):
            made = QuantizedEmbedding.from_config(files.parse_json(metadata["config"], str(path)))
        if tensor["dtype"] != "U8" or tensor["shape"] != list(made.state_dict()["packed"].shape):
            raise ValueError(f"its tensor is {tensor['dtype']} {tensor['shape']}")
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is not a mapped table: {error}") from error
    if not isinstance(made, QuantizedEmbedding):
        raise ArtifactError(f"{path} is not a mapped table")
    return made
