"""Linear layers whose float32 weight is stored in the block order that oneDNN multiplies from.

A pass with few rows spends its time reading weights; the packed order reads them in sequence. On processors where the
stock kernel reorders the weight in every call this halves a pass with one row and cuts one with sixteen rows to a
third. Only rounding differs from the stock layer. The module keeps the original parameters under their own names,
so state dicts and tied weights stay as they are, and the original modules can be put back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn

_TYPICAL_ROWS = 8
_WORTHWHILE = 0.9


class PackedLinear(nn.Module):
    """An inference-only `nn.Linear` computed from a packed copy of its weight; input (..., in), output (..., out)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TYPICAL_ROWS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs @ weight.T + bias`."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed copy, held beside the original weight."""
        return self.weight.numel() * self.weight.element_size()


def _available() -> bool:
    available = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def _packable(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear or module._forward_hooks or module._forward_pre_hooks:
        return False
    return module.weight.device.type == "cpu" and module.weight.dtype == torch.float32


def _seconds(call: Callable[[], object], repeats: int = 7) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def packing_pays(linear: nn.Linear) -> bool:
    """Return whether the packed product of one row and of eight rows is clearly quicker on this machine."""
    packed = PackedLinear(linear)
    with torch.inference_mode():
        for rows in (1, _TYPICAL_ROWS):
            inputs = torch.zeros(1, rows, linear.in_features)
            stock, own = _seconds(lambda x=inputs: linear(x)), _seconds(lambda x=inputs: packed(x))  # type: ignore[misc]
            if own > _WORTHWHILE * stock:
                return False
    return True


class Packing:
    """The packed layers of one model, which can be put in and taken out at will.

    Nothing is replaced where oneDNN is missing, where hooks or parametrisations sit on a layer, or where a trial on
    the largest layer shows no gain; then `extra_bytes` is 0.
    """

    def __init__(self, model: nn.Module) -> None:
        found = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if _packable(child)
        ]
        self._sites: list[tuple[nn.Module, str, nn.Linear, PackedLinear]] = []
        if not found or not _available():
            return
        if packing_pays(max((child for _, _, child in found), key=lambda child: child.weight.numel())):
            self._sites = [(parent, name, child, PackedLinear(child)) for parent, name, child in found]

    @property
    def extra_bytes(self) -> int:
        """Bytes of the packed copies, held beside the original weights."""
        return sum(packed.packed_bytes for _, _, _, packed in self._sites)

    def put_in(self) -> None:
        """Replace the linear layers by their packed twins."""
        for parent, name, linear, packed in self._sites:
            setattr(parent, name, packed.train(linear.training))

    def take_out(self) -> None:
        """Put the original linear layers back."""
        for parent, name, linear, _ in self._sites:
            setattr(parent, name, linear)
