"""Linear layers whose float32 weight is stored in the block order that oneDNN multiplies from.

A pass with few rows spends its time reading weights; the packed order reads them in sequence. How much that gains, and
for how many rows, differs between processors: on one it halves a pass with one row, on another it gains nothing below
four rows and half of the time at eight. So a trial decides, for each number of rows. Only rounding differs from the
stock layer. The module keeps the original parameters under their own names, so state dicts and tied weights stay as
they are, and the original modules can be put back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

_TYPICAL_ROWS = 8
_TRIED_ROWS = (1, 2, 4, 8, 16, 64)
_WORTHWHILE = 0.9
_PAIRS = 9
_SAMPLE_WEIGHTS = 16_000_000
_ANY = 1 << 40


class PackedLinear(nn.Module):
    """An inference-only `nn.Linear` computed from a packed copy of its weight; input (..., in), output (..., out).

    Args:
        rows: fewest and most rows for which the packed copy is used; the stock product runs otherwise.
    """

    def __init__(self, linear: nn.Linear, rows: tuple[int, int] = (1, _ANY)) -> None:
        super().__init__()
        self.weight, self.bias, self.rows = linear.weight, linear.bias, rows
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TYPICAL_ROWS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs @ weight.T + bias`."""
        if self.rows[0] <= inputs.numel() // self.in_features <= self.rows[1]:
            return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]
        return functional.linear(inputs, self.weight, self.bias)

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


def rows_that_pay(linears: Sequence[nn.Linear], pairs: int = _PAIRS) -> tuple[int, int]:
    """Return the fewest and most rows for which packed products are clearly quicker on this machine; (0, 0) for none.

    Stock and packed products over the same layers are timed in turns, and their ratio is judged by the median over
    pairs with its interval by order statistics (no assumption on the noise; 96 % for nine pairs). A number of rows pays
    only if the whole interval lies below 0.9; where that is not certain nothing is packed.

    Args:
        linears: layers that are run one after the other, as a pass does.
    """
    packed = [PackedLinear(each) for each in linears]
    paying: list[int] = []
    with torch.inference_mode():
        for rows in _TRIED_ROWS:
            inputs = [torch.zeros(1, rows, each.in_features) for each in linears]
            ratios = paired_ratios(lambda x=inputs: _run(packed, x), lambda x=inputs: _run(linears, x), pairs)  # type: ignore[misc]
            if median_interval(ratios)[1] < _WORTHWHILE:
                paying.append(rows)
            elif rows < _TYPICAL_ROWS:
                paying = []
            else:
                break
    return (paying[0], paying[-1]) if _TYPICAL_ROWS in paying else (0, 0)


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
        decided: the rows for which an earlier trial found a gain; without it the trial is made.
    """

    def __init__(self, model: nn.Module, decided: tuple[int, int] | None = None) -> None:
        found = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if _packable(child)
        ]
        self.rows = (0, 0)
        """Fewest and most rows of a pass that run on packed weights; (0, 0) where none do."""
        self._sites: list[tuple[nn.Module, str, nn.Linear, PackedLinear]] = []
        if not found or not _available():
            return
        self.rows = rows_that_pay(_sample([child for _, _, child in found])) if decided is None else decided
        if self.rows[0]:
            self._sites = [(parent, name, child, PackedLinear(child, self.rows)) for parent, name, child in found]

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
