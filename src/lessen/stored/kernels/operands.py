"""A linear layer held ready for kernels, and its product with rows of float32.

rows float32 --> rounded to int8 by block (`roundings`) --> products with the panels (`products`) --> rows float32
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lessen.stored.kernels import machine, roundings
from lessen.stored.kernels.dots import Machine, machine_of
from lessen.stored.kernels.panels import Blocks, arranged
from lessen.stored.kernels.products import Product, Writer
from lessen.stored.kernels.widened import Widened

SHARE = 1 << 15
"""Multiply-adds that are worth a thread of their own."""


@cache
def here() -> Machine:
    """Return what products are written for on this machine."""
    return machine_of(machine.features())


@cache
def product_kernel(product: Product, many: bool) -> int:
    """Return the address of a kernel for one row or many, compiled when first asked for."""
    writer = Widened if product.floats else Writer
    return machine.compiled(writer(product).write(many), as_written=True)


@cache
def rounding_kernel(rounding: roundings.Rounding) -> int:
    """Return the address of a kernel that rounds rows, compiled when first asked for."""
    return machine.compiled(roundings.write(rounding))


@dataclass(frozen=True)
class Activations:
    """Room for rows of activations: codes, int8 or float32 [rows, stride], the others one number a block of a row."""

    codes: Tensor
    steps: Tensor
    starts: Tensor
    sums: Tensor

    @classmethod
    def room(cls, rows: int, blocks: Blocks, whole: bool = False) -> Activations:
        """Return room for so many rows, `whole` ones float32; codes are 0, as those must be that fill up a block."""
        floats = torch.empty(2, rows, blocks.all, dtype=torch.float32, device="cpu")
        starts = torch.empty(rows, blocks.all, dtype=torch.int32, device="cpu")
        kind = torch.float32 if whole else torch.int8
        return cls(torch.zeros(rows, blocks.row, dtype=kind, device="cpu"), floats[0], starts, floats[1])

    def addresses(self) -> list[int]:
        """Return where they lie, in the order in which kernels take them."""
        return [tensor.data_ptr() for tensor in (self.codes, self.steps, self.starts, self.sums)]


@dataclass(frozen=True, eq=False)
class Operand:
    """Weights [out, in] as panels, made once; `bias` float32 [out] or none.

    `across`: activations have one step a row, in place of one a block. They have none where the product is of floats.
    """

    product: Product
    blocks: Blocks
    outputs: int
    panels: Tensor
    bias: Tensor | None
    across: bool = False

    @classmethod
    def of(
        cls,
        codes: Tensor,
        scales: Tensor,
        minimums: Tensor | None,
        bias: Tensor | None,
        bits: int,
        group: int,
        across: bool = False,
        target: Machine | None = None,
        floats: bool = False,
    ) -> Operand | None:
        """Return codes uint8 [out, in] on scales [out, groups], fp16 or float32; None where blocks are uneven.

        Args:
            floats: multiply with activations as they come, in float32.
        """
        blocks, target = Blocks(codes.shape[1], group), target or here()
        if not blocks.even:
            return None
        kind = "half" if scales.dtype == torch.float16 else "float"
        product = Product(target, bits, blocks.size, blocks.tail, minimums is None, kind, floats)
        panels = arranged(codes, scales, minimums, bits, blocks, target)
        return cls(product, blocks, len(codes), panels, bias, across)

    @property
    def bytes(self) -> int:
        """Bytes of the panels."""
        return self.panels.numel()

    @property
    def rounding(self) -> roundings.Rounding:
        """What rows are rounded as."""
        product = self.product
        return roundings.Rounding(product.inputs, product.tail, product.offset, self.across, product.floats)

    def arguments(self, state: int, given: Activations, out: int, width: int, add: bool = False) -> list[int]:
        """Return the arguments of the product kernels; outputs go to float32 rows of `width` at an address."""
        return [
            state, self.panels.data_ptr(), len(self.panels), self.outputs,
            0 if self.bias is None else self.bias.data_ptr(), *given.addresses(),
            self.blocks.count, self.blocks.row, out, width, int(add),
        ]  # fmt: skip

    def multiply(self, rows: Tensor) -> Tensor:
        """Return float32 [rows, out] for contiguous float32 [rows, in]."""
        count = len(rows)
        out = torch.empty(count, self.outputs, dtype=torch.float32, device="cpu")
        given = Activations.room(count, self.blocks, self.product.floats)
        threads = machine.threads_for(count * self.outputs * self.blocks.inputs // SHARE)
        state = numbers([int(threads == 1), count, 0])
        address = ctypes.addressof(state)
        rounded = numbers(
            [
                address,
                rows.data_ptr(),
                self.blocks.inputs,
                *given.addresses(),
                self.blocks.count,
                self.blocks.row,
            ]
        )
        machine.run(rounding_kernel(self.rounding), rounded, threads)
        product = numbers(self.arguments(address, given, out.data_ptr(), self.outputs))
        machine.run(product_kernel(self.product, count > 1), product, threads)
        return out


def numbers(values: list[int]) -> Any:
    """Return an array of int64."""
    return (ctypes.c_int64 * len(values))(*values)
