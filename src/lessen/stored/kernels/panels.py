"""The order of a linear layer's codes that kernels read: one stream of bytes a panel of 32 outputs, front to back.

    panel ─ block of inputs ─ 32 inputs ─ vector of outputs ─ planes of bits          then scales, minimums of the block

A block is a group of inputs with one scale, or a piece of at most 128 of a larger group; it is filled up with code 0
to a multiple of 32 inputs, and a row may end in one shorter block. A vector holds `lanes` outputs, four inputs each.
Codes of 3 bits are planes of 2 bits and 1, of 5 bits 4 and 1, of 6 bits 4 and 2: a byte of a plane holds codes of the
same output for inputs that lie four apart. Scales are as in the stored form, so a stream has its bytes and no more than
filling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lessen.stored.kernels.dots import Machine

OUTPUTS = 32
"""Outputs of a panel."""
INPUTS = 32
"""Inputs that are read together."""
LONGEST = 256
"""Inputs of a block at most: the group of a stored form, which is not cut."""
PIECE = 128
"""Inputs of a block where a group is longer."""
PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
"""Bits of each plane, those of least weight first."""


@dataclass(frozen=True)
class Blocks:
    """How a row of `inputs` weights in groups of `group` falls into blocks; asked at every product, worked out once."""

    inputs: int
    group: int

    @cached_property
    def size(self) -> int:
        """Inputs of a full block."""
        return min(self.group if self.group <= LONGEST else PIECE, self.inputs)

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """First input of each block and the one after its last. Groups that are cut are cut alike."""
        found = []
        for start in range(0, self.inputs, self.group):
            end = min(start + self.group, self.inputs)
            found += [(first, min(first + self.size, end)) for first in range(start, end, self.size)]
        return found

    @cached_property
    def even(self) -> bool:
        """Tell whether all blocks but the last are full, which kernels take for granted."""
        return all(end - start == self.size for start, end in self.spans[:-1])

    @cached_property
    def filled(self) -> int:
        """Inputs that a full block takes, with those that fill it up."""
        return filled(self.size)

    @cached_property
    def count(self) -> int:
        """Full blocks of a row."""
        return self.inputs // self.size

    @cached_property
    def tail(self) -> int:
        """Inputs of the shorter block at the end of a row, or 0."""
        return self.inputs % self.size

    @cached_property
    def all(self) -> int:
        """Blocks of a row."""
        return self.count + (self.tail > 0)

    @cached_property
    def row(self) -> int:
        """Bytes of a row of activations: filled, and an odd number of cache lines, so that rows share no place."""
        size = self.count * self.filled + filled(self.tail)
        lines = -(-size // 64)
        return 64 * (lines + (lines % 2 == 0))


def filled(inputs: int) -> int:
    """Return the multiple of 32 that so many inputs take."""
    return -(-inputs // INPUTS) * INPUTS


def block_bytes(bits: int, inputs: int, table: int) -> int:
    """Return the bytes of a block of a panel, with `table` bytes of scale and minimum an output, inputs filled up."""
    return OUTPUTS * filled(inputs) * bits // 8 + OUTPUTS * table


def arranged(
    codes: Tensor, scales: Tensor, minimums: Tensor | None, bits: int, blocks: Blocks, machine: Machine
) -> Tensor:
    """Return the panels uint8 [panels, bytes] of codes uint8 [out, in] with fp16 or float32 scales [out, groups].

    Outputs beyond the last are filled with scale 0.
    """
    panels = -(-len(codes) // OUTPUTS)
    codes = _more_rows(codes ^ 0x80 if machine.turned(bits) else codes, panels * OUTPUTS)
    fill = 0x80 if machine.turned(bits) else 0
    parts = []
    tables = [_more_rows(one, panels * OUTPUTS) for one in (scales, minimums) if one is not None]
    for start, end in blocks.spans:
        part = torch.full((len(codes), filled(end - start)), fill, dtype=torch.uint8)
        part[:, : end - start] = codes[:, start:end]
        parts.append(_ordered(part, bits, machine))
        for table in tables:
            column = table[:, start // blocks.group].contiguous()
            parts.append(column.view(torch.uint8).view(panels, -1))
    return torch.cat(parts, dim=1)


def _more_rows(tensor: Tensor, rows: int) -> Tensor:
    made = torch.zeros(rows, tensor.shape[1], dtype=tensor.dtype)
    made[: len(tensor)] = tensor
    return made


def _ordered(codes: Tensor, bits: int, machine: Machine) -> Tensor:
    """Return the bytes [panels, *] of one block of codes [out, inputs], both full."""
    vectors = OUTPUTS // machine.lanes
    shape = (-1, vectors, machine.lanes, codes.shape[1] // INPUTS, 8, 4)
    six = codes.view(shape).permute(0, 3, 1, 4, 2, 5)  # panel, 32 inputs, vector, step, lane, input
    planes = []
    for low, width in placed(bits):
        fields = (six >> low) & ((1 << width) - 1)
        together = fields.view(*fields.shape[:3], width, 8 // width, *fields.shape[4:])
        shifts = (torch.arange(8 // width, dtype=torch.uint8) * width).view(-1, 1, 1)
        planes.append((together << shifts).sum(dim=4, dtype=torch.uint8))
    return torch.cat(planes, dim=3).flatten(1)


def placed(bits: int) -> Iterator[tuple[int, int]]:
    """Yield the lowest bit and the bits of each plane."""
    low = 0
    for width in PLANES[bits]:
        yield low, width
        low += width
