"""A linear layer whose weights are packed codes of 2 to 8 bits with 16 bit scales for groups of inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import InputError
from lessen.stored import bits as packing
from lessen.stored import checks
from lessen.stored.base import stored
from lessen.stored.kernels import machine
from lessen.stored.kernels.dots import LARGEST
from lessen.stored.kernels.linear import Held, product, takes
from lessen.stored.kernels.operands import Operand
from lessen.stored.kernels.panels import Blocks
from lessen.stored.kernels.roundings import LEAST
from lessen.stored.linears.decoded import DecodedLinear
from lessen.stored.linears.group_grid import WIDTHS, GroupGrid, group_count

ACTIVATIONS = ("float", "int8")


@stored
class GroupQuantizedLinear(DecodedLinear):
    """State: `codes` uint8 [out, packed bytes of a row] (see `stored.bits`), `scales` fp16 [out, groups], `minimums`
    fp16 [out, groups] unless symmetric, `bias` float32 [out] or none. Values are those of `GroupGrid`.

    `activations`:
        "float"  inputs stay as they come. Codes are widened to float32 as they meet inputs, with the extra `kernels`
                 (llvmlite) on Linux CPUs, from panels made at the first forward (`packed_bytes` of memory, never
                 saved); elsewhere a forward decodes some outputs at a time to the input's type (see `DecodedLinear`).
        "int8"   inputs are rounded to int8 with a step for each group of each row (pieces of 128 of a group beyond
                 256), so that products are of integers, compiled in the same way; elsewhere inputs are rounded alike
                 and multiplied as decoded, which gives the same up to the order of float sums. Inputs are not rounded
                 where a gradient with respect to the input is asked for.
    """

    kind = "group-quantized-linear"
    codes: Tensor
    scales: Tensor
    minimums: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        group: int,
        symmetric: bool = False,
        bias: bool = True,
        activations: str = "float",
    ) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**24)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        checks.elements("a weight", self.in_features, self.out_features)
        self.bits: int = checks.one_of("bits", bits, WIDTHS)
        self.group = checks.whole("group", group, 1, self.in_features)
        self.symmetric = bool(checks.one_of("symmetric", symmetric, (True, False)))
        self.activations = str(checks.one_of("activations", activations, ACTIVATIONS))
        has_bias = bool(checks.one_of("bias", bias, (True, False)))
        out, groups = self.out_features, group_count(self.in_features, self.group)
        packed = packing.row_bytes(self.in_features, self.bits)
        self.register_buffer("codes", torch.zeros(out, packed, dtype=torch.uint8))
        self._make_grid(out, groups)
        self.register_buffer("bias", torch.zeros(out) if has_bias else None)
        self._held: Held[Operand] = Held()

    def _make_grid(self, out: int, groups: int) -> None:
        self.register_buffer("scales", torch.zeros(out, groups, dtype=torch.float16))
        self.register_buffer("minimums", None if self.symmetric else torch.zeros(out, groups, dtype=torch.float16))

    def config(self) -> dict[str, Any]:
        """Return the sizes, the bits of a code, the inputs of a group, and what there is beside codes and scales."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bits": self.bits,
            "group": self.group,
            "symmetric": self.symmetric,
            "bias": self.bias is not None,
            "activations": self.activations,
        }

    @classmethod
    def from_codes(
        cls, layer: nn.Linear, grid: GroupGrid, codes: Tensor, activations: str = "float"
    ) -> GroupQuantizedLinear:
        """Pack codes uint8 [out, in] on their grid; the bias is the layer's."""
        known: dict[str, Any] = {
            "bits": grid.bits, "group": grid.group, "symmetric": grid.minimums is None, "bias": layer.bias is not None,
            "activations": activations, **({} if grid.scale_bits is None else {"scale_bits": grid.scale_bits}),
        }  # fmt: skip
        made = cls(layer.in_features, layer.out_features, **known)
        made = made.to(layer.weight.device)
        made.codes.copy_(packing.pack(codes, grid.bits))
        made.put(grid)
        if made.bias is not None:
            made.bias.copy_(layer.bias.detach())
        return made

    @torch.no_grad()
    def put(self, grid: GroupGrid) -> None:
        """Take the scales and minimums of a grid of the same form."""
        self.scales.copy_(grid.scales)
        if self.minimums is not None and grid.minimums is not None:
            self.minimums.copy_(grid.minimums)

    @property
    def grid(self) -> GroupGrid:
        """The grid that the codes lie on."""
        return GroupGrid(self.bits, self.group, self.scales, self.minimums)

    def forward(self, input: Tensor) -> Tensor:
        """Map float [*, in] to [*, out] of the same type. Raises InputError for inputs of another width."""
        if input.shape[-1] != self.in_features:
            raise InputError(f"a layer of {self.in_features} inputs was given {input.shape[-1]}")
        if torch.is_grad_enabled() and input.requires_grad:
            return self.decoded_product(input)
        operand = self.operand() if takes(input, self._tensors) else None
        if operand is not None:
            return product(operand, input)
        if self.activations == "float":
            return self.decoded_product(input)
        return self.decoded_product(rounded(input, Blocks(self.in_features, self.group)))

    def operand(self) -> Operand | None:
        """Return the layer as kernels take it, made where it changed; None for a form that none takes."""
        return self._held.operand(self._tensors, self._operand)

    @property
    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.codes, self.scales, self.minimums, self.bias

    def _operand(self) -> Operand | None:
        if self.scales.dtype != torch.float16:
            return None
        codes = packing.unpack(self.codes, self.bits, self.in_features)
        bias = None if self.bias is None else self.bias.detach().float().contiguous()
        floats = self.activations == "float"
        return Operand.of(codes, self.scales, self.minimums, bias, self.bits, self.group, floats=floats)

    def packed_bytes(self) -> int:
        """Return the bytes of the panels, or of the decoded weight, held beside the buffers."""
        return self._held.bytes + super().packed_bytes()

    def storage_only(self) -> bool:
        """Tell whether no kernel takes this form here."""
        return not machine.available() or self.codes.device.type != "cpu" or self.operand() is None

    def check_values(self) -> None:
        """Refuse scales and minimums that are not finite; every code is a level. Raises ValueError."""
        for name, tensor in (("scales", self.scales), ("minimums", self.minimums)):
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} hold NaN or infinity")

    def decoded(self, part: slice) -> Tensor:
        """Return the weights of some outputs, float32 [part, in]."""
        codes = packing.unpack(self.codes[part], self.bits, self.in_features)
        return self.grid.rows(part).values(codes)


def rounded(inputs: Tensor, blocks: Blocks) -> Tensor:
    """Return float [*, in] rounded to int8 by block, as kernels round: the step is largest |x| / 127."""
    parts = []
    for start, end in blocks.spans:
        part = inputs[..., start:end].float()
        largest = part.abs().amax(dim=-1, keepdim=True).clamp(min=LEAST)
        parts.append(torch.round(part * (LARGEST / largest)) * (largest / LARGEST))
    return torch.cat(parts, dim=-1).to(inputs.dtype)


def layer_bytes(layer: nn.Linear, bits: int, group: int, symmetric: bool, scale_bits: int | None = None) -> int:
    """Return the bytes that a layer takes: codes, 2 a scale, 2 a minimum, 4 a bias.

    Args:
        scale_bits: scales and minimums are codes of so many bits, and 2 bytes a row (`coded_scales`).
    """
    groups = group_count(layer.in_features, group)
    each = 2 * groups if scale_bits is None else packing.row_bytes(groups, scale_bits) + 2
    row = packing.row_bytes(layer.in_features, bits) + (1 if symmetric else 2) * each
    return int(layer.out_features * (row + (4 if layer.bias is not None else 0)))
