"""Weights as GGUF blocks of 32 inputs: every code and scale is carried over, none is rounded a second time.

Q4_0   fp16 scale             16 bytes: input j in the low half of byte j, input j + 16 in the high half
Q4_1   fp16 scale, minimum    the same 16 bytes
Q5_0   Q5_1                   the same, and the fifth bit of each input in 4 bytes before them
Q8_0   fp16 scale             32 signed bytes

Fewer bits than a block has are written into the next wider one, where they are exact and take its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lessen.errors import ConfigError
from lessen.export.codes import Coded

BLOCK = 32
HALF_MAX = 65_504.0
Bytes = np.ndarray


@dataclass(frozen=True)
class Packed:
    """A tensor as it stands in the file: the name of its GGML type, and its numbers or bytes [rows, bytes]."""

    kind: str
    data: np.ndarray
    rounded: bool = False
    """Whether writing it changed a value."""


def pack(weight: Coded, path: str) -> Packed:
    """Return the blocks of a coded weight.

    Raises:
        ConfigError: its groups do not fill blocks, or no block holds its values; says what to set.
    """
    group, inputs = weight.grid.group, weight.inputs
    if inputs % BLOCK:
        raise ConfigError(
            f"{path} has rows of {inputs} inputs, and GGUF blocks hold {BLOCK}; leave it out of the steps that round "
            f"weights (skip={path!r})"
        )
    if group % BLOCK and group < inputs:
        raise ConfigError(f"{path} has groups of {group} inputs, and GGUF blocks hold {BLOCK}; set group=32, 64 or 128")
    kind, codes, minimums = _form(weight, path)
    scales = _halves(weight.spread(weight.grid.scales, BLOCK))
    heads = [scales] if minimums is None else [scales, _halves(weight.spread(minimums, BLOCK))]
    blocks = codes.reshape(len(codes), -1, BLOCK)
    parts = [*heads, *_BODIES[kind](blocks.numpy())]
    return Packed(kind, np.concatenate(parts, axis=2).reshape(len(codes), -1))


def _form(weight: Coded, path: str) -> tuple[str, Tensor, Tensor | None]:
    """Return the type of block, the codes as it numbers them, and minimums where it has some."""
    bits, minimums = weight.grid.bits, weight.grid.minimums
    if bits <= 5:
        width = max(4, bits)
        if minimums is not None:
            return f"Q{width}_1", weight.codes, minimums
        return f"Q{width}_0", weight.codes + (2 ** (width - 1) - 2 ** (bits - 1)), None
    if weight.zeros is not None:
        codes = weight.codes.int() - weight.spread(weight.zeros, 1)
        if int(codes.min()) >= -128 and int(codes.max()) <= 127:
            return "Q8_0", codes.to(torch.int8), None
    raise ConfigError(f"{path} holds {weight.label}, and GGUF has no block for them; set symmetric=true, or bits=4")


def _halves(values: Tensor) -> Bytes:
    """Return fp16 values [rows, blocks] as bytes [rows, blocks, 2]."""
    return values.half().contiguous().numpy().view(np.uint8).reshape(*values.shape, 2)


def _nibbles(codes: np.ndarray) -> list[Bytes]:
    low = codes & 15
    return [(low[..., :16] | (low[..., 16:] << 4)).astype(np.uint8)]


def _fifths(codes: np.ndarray) -> list[Bytes]:
    high = np.packbits((codes >> 4).astype(np.uint8), axis=-1, bitorder="little")
    return [high, *_nibbles(codes)]


def _signed(codes: np.ndarray) -> list[Bytes]:
    return [np.ascontiguousarray(codes).view(np.uint8)]


_BODIES = {"Q4_0": _nibbles, "Q4_1": _nibbles, "Q5_0": _fifths, "Q5_1": _fifths, "Q8_0": _signed}


def plain(weight: Tensor) -> Packed:
    """Return a dense tensor in 16 bits, in the kind that holds it exactly if one does; vectors stay float32.

    Weights that neither holds are rounded to fp16, or stay float32 where that would overflow.
    """
    wide = weight.detach().float().contiguous()
    if wide.dim() < 2:
        return Packed("F32", wide.numpy())
    half, brain = wide.half(), wide.bfloat16()
    if torch.equal(half.float(), wide):
        return Packed("F16", half.numpy())
    if torch.equal(brain.float(), wide):
        return Packed("BF16", brain.view(torch.uint8).numpy())
    if float(wide.abs().max()) > HALF_MAX:
        return Packed("F32", wide.numpy())
    return Packed("F16", half.numpy(), rounded=True)
