"""Packed weights as the operator MatMulNBits of onnxruntime holds them, without rounding a value again.

B             uint8 [out, blocks, block * bits / 8]   element 0 in the low half of byte 0
scales        float32 [out, blocks]                   value = scale * (code - zero point)
zero_points   uint8 [out, bytes]                      packed along the blocks; left out: 2^(bits - 1)

A block is a power of two from 16 to 256 inputs; the last one of a row is padded.

Trap: `accuracy_level` 4 multiplies with activations rounded to 8 bits a block. It is several times as fast and changes
logits: on models with massive activations the arg-max too (onnxruntime issue 29849). Level 0 keeps float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lessen.errors import ConfigError
from lessen.export.codes import Coded
from lessen.stored import bits as packing

SMALLEST, LARGEST = 16, 256


@dataclass(frozen=True)
class Blocks:
    """A weight [out, in] as MatMulNBits takes it."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    bits: int
    block: int
    inputs: int
    outputs: int


def block_of(group: int, inputs: int, path: str) -> int:
    """Return the largest block that divides a group. Raises ConfigError for groups that none divides."""
    size = inputs if group >= inputs else group
    block = min(LARGEST, size & -size)
    if block < SMALLEST and group < inputs:
        raise ConfigError(
            f"{path} has groups of {group} inputs, and MatMulNBits holds powers of two; set group=32 or 64"
        )
    return max(block, SMALLEST)  # of one group for the whole row any block is right


def blocks_of(weight: Coded, path: str) -> Blocks:
    """Return the operator's tensors.

    Raises:
        ConfigError: minimums are no whole multiples of their scales, or no block fits; says what to set.
    """
    if weight.zeros is None:
        raise ConfigError(
            f"{path} holds {weight.label} that are no whole multiples of their scale, and MatMulNBits keeps whole zero "
            f"points; compress with {weight.remedy}"
        )
    bits = 4 if weight.grid.bits <= 4 else 8
    block = block_of(weight.grid.group, weight.inputs, path)
    symmetric = weight.grid.minimums is None
    shift = 2 ** (bits - 1) - 2 ** (weight.grid.bits - 1) if symmetric else 0
    padded = functional.pad(weight.codes + shift, (0, -weight.inputs % block))
    rows = len(padded)
    zeros = None
    if not symmetric:
        zeros = packing.pack(weight.spread(weight.zeros, block).to(torch.uint8), bits).numpy()
    return Blocks(
        codes=packing.pack(padded, bits).view(rows, -1, block * bits // 8).numpy(),
        scales=weight.spread(weight.grid.scales, block).float().contiguous().numpy(),
        zeros=zeros,
        bits=bits,
        block=block,
        inputs=weight.inputs,
        outputs=rows,
    )


def values_of(blocks: Blocks) -> Tensor:
    """Return the weight, float32 [out, in], that the operator multiplies with."""
    rows, count = blocks.scales.shape
    codes = packing.unpack(torch.from_numpy(blocks.codes).reshape(rows, -1), blocks.bits, count * blocks.block)
    zeros: Tensor | float = 2.0 ** (blocks.bits - 1)
    if blocks.zeros is not None:
        zeros = packing.unpack(torch.from_numpy(blocks.zeros), blocks.bits, count).float().unsqueeze(2)
    apart = codes.view(rows, count, blocks.block).float() - zeros
    values: Tensor = apart * torch.from_numpy(blocks.scales).unsqueeze(2)
    return values.reshape(rows, -1)[:, : blocks.inputs]
