"""Linear layers whose float32 weight is stored in the block order that oneDNN multiplies from.

A pass with few rows spends its time reading weights; the packed order reads them in sequence. On processors where the
stock kernel reorders the weight in every call this halves a pass with one row and cuts one with sixteen rows to a
third. Only rounding differs from the stock layer. The module keeps the original parameters under their own names,
so state dicts and tied weights stay as they are, and the original modules can be put back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

_TYPICAL_ROWS = 8
_WORTHWHILE = 0.9
_PAIRS = 15
_SAMPLE_WEIGHTS = 32_000_000


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


def packing_pays(linears: Sequence[nn.Linear], pairs: int = _PAIRS) -> bool:
    """Return whether packed products are clearly quicker on this machine, for one row and for eight.

    Stock and packed products over the same layers are timed in turns, and their ratio is judged by the median over
    pairs with its interval by order statistics (no assumption on the noise; 96 % for 15 pairs). Packing pays only if
    the whole interval lies below 0.9 for both; where that is not certain nothing is packed.

    Args:
        linears: layers that are run one after the other, as a pass does.
    """
    packed = [PackedLinear(linear) for linear in linears]
    with torch.inference_mode():
        for rows in (1, _TYPICAL_ROWS):
            inputs = [torch.zeros(1, rows, linear.in_features) for linear in linears]
            ratios = paired_ratios(lambda x=inputs: _run(packed, x), lambda x=inputs: _run(linears, x), pairs)  # type: ignore[misc]
            if median_interval(ratios)[1] > _WORTHWHILE:
                return False
    return True


def _run(layers: Sequence[nn.Module], inputs: Sequence[Tensor]) -> None:
    for layer, rows in zip(layers, inputs, strict=True):
        layer(rows)


def paired_ratios(one: Callable[[], object], other: Callable[[], object], pairs: int) -> list[float]:
    """Return seconds of `one` over seconds of `other` for pairs of calls; which goes first alternates."""
    one(), other()
    ratios = []
    for number in range(pairs):
        first, second = (one, other) if number % 2 == 0 else (other, one)
        start = time.perf_counter()
        first()
        middle = time.perf_counter()
        second()
        spent = (middle - start, time.perf_counter() - middle)
        own, stock = spent if number % 2 == 0 else spent[::-1]
        ratios.append(own / max(stock, 1e-9))
    return ratios


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval of order statistics that holds the median with at least 95 % chance, or all values."""
    count, tail, cut = len(values), 0.0, 0
    while cut < count // 2 and tail + math.comb(count, cut) / 2**count <= 0.025:
        tail += math.comb(count, cut) / 2**count
        cut += 1
    ordered = sorted(values)
    return ordered[max(0, cut - 1)], ordered[count - max(1, cut)]


def _sample(linears: Sequence[nn.Linear]) -> list[nn.Linear]:
    """Return the largest layer and others in order, so much that they do not stay in the processor's cache."""
    largest = max(linears, key=lambda linear: linear.weight.numel())
    chosen, size = [largest], largest.weight.numel()
    for linear in linears:
        if linear is not largest and size < _SAMPLE_WEIGHTS:
            chosen.append(linear)
            size += linear.weight.numel()
    return chosen


class Packing:
    """The packed layers of one model, which can be put in and taken out at will.

    Nothing is replaced where oneDNN is missing, where hooks or parametrisations sit on a layer, or where a trial shows
    no certain gain; then `extra_bytes` is 0.

    Args:
        decided: what an earlier trial found; without it the trial is made.
    """

    def __init__(self, model: nn.Module, decided: bool | None = None) -> None:
        found = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if _packable(child)
        ]
        self._sites: list[tuple[nn.Module, str, nn.Linear, PackedLinear]] = []
        if not found or not _available():
            return
        if packing_pays(_sample([child for _, _, child in found])) if decided is None else decided:
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
