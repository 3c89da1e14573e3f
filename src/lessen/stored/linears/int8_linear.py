"""A linear layer with int8 weights (a scale for each output) and int8 activations quantised as they come."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.integers import blocked, products
from lessen.stored.kernels import recorded
from lessen.stored.kernels.linear import Held, product, takes
from lessen.stored.kernels.operands import Operand

GRANULARITIES = ("row", "tensor")
TOGETHER = 1 << 18
"""Numbers of the wider side, inputs or outputs, that are multiplied together."""


@stored
class Int8Linear(StoredModule):
    """State: `codes` int8 [out, in], `scales` float32 [out], `bias` float32 [out]; weight = scales * codes.

    `activations`:
        "row"     each example has its own scale: an example's output does not depend on its batch. Products are of the
                  codes as they are stored (`stored.integers`). The extra `kernels`, where torch has no quick one for
                  int8, which is without VNNI, multiplies from a second copy of the codes, in an order of its own and in
                  0.7 of the time (median of 30 sizes); with VNNI that copy gains next to nothing and is not made. All
                  multiply the same integers.
        "tensor"  one scale for the batch, torch's fused `linear_dynamic`: faster, coarser (7 bits on processors
                  without VNNI), and the output of an example moves slightly with its batch.
    What kernels and "tensor" multiply from is made at first use and never saved. The dequantised weight is used where a
    gradient with respect to the input is asked for.
    """

    kind = "int8-linear"
    codes: Tensor
    scales: Tensor
    bias: Tensor

    def __init__(self, in_features: int, out_features: int, activations: str = "row") -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**24)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        checks.elements("a weight", self.in_features, self.out_features)
        self.activations = str(checks.one_of("activations", activations, GRANULARITIES))
        self.register_buffer("codes", torch.zeros(self.out_features, self.in_features, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(self.out_features))
        self.register_buffer("bias", torch.zeros(self.out_features))
        self._packed: tuple[Any, Any] | None = None
        self._held: Held[Operand] = Held()

    def config(self) -> dict[str, Any]:
        """Return the sizes and the granularity of activations."""
        return {"in_features": self.in_features, "out_features": self.out_features, "activations": self.activations}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Int8Linear:
        """Build an empty twin. Raises ValueError or TypeError for sizes that make no sense."""
        return cls(**config)

    @classmethod
    def from_dense(cls, layer: nn.Linear, activations: str = "row") -> Int8Linear:
        """Round each output's weights to the grid max|w| / 127, symmetric; an all-zero output keeps scale 1."""
        made = cls(layer.in_features, layer.out_features, activations)
        weight = layer.weight.detach().float()
        largest = weight.abs().amax(dim=1)
        made.scales.copy_(torch.where(largest > 0, largest / 127.0, torch.ones_like(largest)))
        made.codes.copy_(torch.round(weight / made.scales.unsqueeze(1)).clamp_(-127, 127).to(torch.int8))
        if layer.bias is not None:
            made.bias.copy_(layer.bias.detach())
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Map float [*, in] to float32 [*, out]."""
        if torch.is_grad_enabled() and input.requires_grad:
            return functional.linear(input, self.dequantise(), self.bias)
        pays = self.activations == "row" and not blocked() and takes(input, (self.codes, self.scales, self.bias))
        operand = self.operand() if pays else None
        if operand is not None:
            return product(operand, input.float())
        flat = input.reshape(-1, self.in_features).float()
        if flat.shape[0] == 0:
            wide = flat.new_zeros(0, self.out_features)
        else:
            wide = self._by_row(flat) if self.activations == "row" else self._by_tensor(flat)
        return wide.reshape(*input.shape[:-1], self.out_features)

    def operand(self) -> Operand | None:
        """Return the layer as kernels take it, made where it changed; None for activations by tensor."""
        if self.activations != "row" or self.scales.dtype != torch.float32 or self.codes.dtype != torch.int8:
            return None
        return self._held.operand((self.codes, self.scales, self.bias), self._held_operand)

    def _held_operand(self) -> Operand | None:
        codes, scales = self.codes.view(torch.uint8) ^ 0x80, self.scales.unsqueeze(1)
        return Operand.of(codes, scales, None, self.bias.detach().float(), 8, self.in_features, across=True)

    def _by_row(self, flat: Tensor) -> Tensor:
        """Multiply some rows at a time, so that what lies between stays in the caches."""
        part = max(16, TOGETHER // max(self.in_features, self.out_features))
        if recorded() or len(flat) <= part:
            return self._rows(flat)
        out = flat.new_empty(len(flat), self.out_features)
        for first in range(0, len(flat), part):
            out[first : first + part] = self._rows(flat[first : first + part])
        return out

    def _rows(self, flat: Tensor) -> Tensor:
        scale = flat.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30) / 127.0
        return torch.addcmul(self.bias, products((flat / scale).round_(), self.codes), scale * self.scales)

    def _by_tensor(self, flat: Tensor) -> Tensor:
        result: Tensor = torch.ops.quantized.linear_dynamic(flat, self._operand(), not blocked())
        return result

    def _operand(self) -> Any:
        """Return torch's packed weight, made anew when a buffer changed."""
        tensors = (self.codes, self.scales, self.bias)
        version = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if self._packed is None or self._packed[0] != version:
            zeros = torch.zeros(self.out_features, dtype=torch.int64)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch announces the end of quantised tensors, which only packing uses
                weight = torch._make_per_channel_quantized_tensor(self.codes, self.scales.double(), zeros, 0)
                self._packed = (version, torch.ops.quantized.linear_prepack(weight, self.bias))
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the packed operand out of copies and pickles; it is made again where it is used."""
        return {**self.__dict__, "_packed": None}

    def packed_bytes(self) -> int:
        """Return the bytes of what is multiplied from, held beside the buffers."""
        return self._held.bytes + (0 if self._packed is None else self.codes.numel())

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in], float32."""
        return self.codes.float() * self.scales.unsqueeze(1)

    def opaque_macs(self, *inputs: Any) -> int:
        """Return multiply-adds of one forward of float [*, in], which the flop counter does not see."""
        return int(inputs[0].numel() // self.in_features) * self.in_features * self.out_features
