"""The most probable token from a quarter of the head's bytes: 8 bit scores with a certified bound, then exact ones.

    hidden ─ two 8 bit parts ─ integer products with 8 bit rows ─ scores ± bounds ─ rows that may be best ─ exact scores

Let a row be w = s c + r with codes c int8, and a hidden vector h = h' + e with h' = a p + b q of int8 vectors p and q.
Then w.h = s c.h' + r.h + s c.e, and by Cauchy and Schwarz the score s c.h' is off by at most |r| |h| + |s c| |e|. The
products c.p and c.q are exact integers; what float arithmetic adds to scores and norms is covered by a slack. A row
whose upper bound is below another row's lower bound cannot be best. All rows that are left are scored in float64.

Only the arg-max is exact: other rows keep approximate logits, below the best one. So the head screens inside `screened`
only, where tokens are chosen greedily and nothing else reads logits; elsewhere it is the layer that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.decoding.packing import median_interval, paired_ratios
from lessen.stored.integers import sums

SMALLEST = 4_000_000
"""Weights of a head from which on a trial is made."""
MOST_ROWS = 8
"""Hidden vectors that are screened at once; more are multiplied as they were."""
SLACK = 2.0**-20
"""Share of the terms of a score that float32 arithmetic may add: 16 roundings."""
WIDER = 1 + 2.0**-18
"""Factor of norms that float32 arithmetic may have made too small: sums of up to 2^14 squares in blocks."""
WIDEST = 2**14
TOGETHER = 1024
"""Rows that are scored exactly at a time."""
WORTHWHILE = 0.9
PAIRS = 9
_SCREENING: ContextVar[bool] = ContextVar("lessen_screening", default=False)


@contextmanager
def screened(active: bool = True) -> Iterator[None]:
    """Let screened heads give logits of which only the arg-max is exact."""
    token = _SCREENING.set(active)
    try:
        yield
    finally:
        _SCREENING.reset(token)


@dataclass(frozen=True)
class Found:
    """The best rows of some hidden vectors."""

    logits: Tensor
    """float32 [n, rows]; the arg-max and the scores of rows that were scored exactly are exact."""
    best: Tensor
    """int64 [n]."""
    rescored: int
    """Rows that were read exactly."""


class Screen:
    """The 8 bit rows of a head, held beside its weight.

    Args:
        weight: float [rows, width], read again for exact scores; width at most 16384.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        rows, width = self.weight.shape
        self.codes = torch.empty(rows, width, dtype=torch.int8)
        self.scale, self.residual, self.norm = (torch.empty(rows) for _ in range(3))
        for start in range(0, rows, 4096):
            part = slice(start, start + 4096)
            dense = self.weight[part].double()
            scale = (dense.abs().amax(1) / 127).float()
            step = scale.double().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
            codes = (dense / step).round().clamp(-127, 127)
            held = codes * scale.double()[:, None]
            self.codes[part], self.scale[part] = codes.to(torch.int8), scale
            self.residual[part] = (dense - held).norm(dim=1).float() * WIDER
            self.norm[part] = held.norm(dim=1).float() * WIDER

    @property
    def bytes(self) -> int:
        """Bytes that are held, and read for every choice."""
        return sum(one.nbytes for one in (self.codes, self.scale, self.residual, self.norm))

    def find(self, hidden: Tensor, bias: Tensor | None = None) -> Found:
        """Return the best row for each hidden vector, float32 [n, width], ties to the first row."""
        n = len(hidden)
        largest = hidden.abs().amax(1, keepdim=True)
        coarse = (largest / 127).clamp(min=1e-30)
        fine = coarse / 254
        first = (hidden / coarse).round().clamp(-127, 127)
        second = ((hidden - first * coarse) / fine).round().clamp(-127, 127)
        wide = hidden.double()
        apart = wide - first.double() * coarse.double() - second.double() * fine.double()
        products = sums(torch.cat([first, second]).to(torch.int8), self.codes).float()
        one, other = products[:n] * coarse, products[n:] * fine
        scores = (one + other) * self.scale
        off = (one.abs_() + other.abs_()).mul_(self.scale).mul_(SLACK)
        off += self.residual * (wide.norm(dim=1, keepdim=True).float() * WIDER)
        off += self.norm * (apart.norm(dim=1, keepdim=True).float() * WIDER)
        if bias is not None:
            scores = scores + bias
            off += (scores.abs() + bias.abs()) * SLACK
        low = (scores - off).amax(1, keepdim=True)
        kept = ((scores + off) >= low - low.abs() * SLACK).any(0).nonzero()[:, 0]
        exact = torch.cat([_products(self.weight[part].double(), wide) for part in torch.split(kept, TOGETHER)], dim=1)
        if bias is not None:
            exact += bias[kept].double()
        best = kept[exact.argmax(1)]
        scores[:, kept] = exact.float()
        _set_apart(scores, best)
        return Found(scores, best, len(kept))


def _products(rows: Tensor, hidden: Tensor) -> Tensor:
    """Return float64 [n, rows] of hidden [n, width]; equal rows give equal products, which a matrix product may not."""
    return torch.stack([(rows * one).sum(1) for one in hidden])


def _set_apart(scores: Tensor, best: Tensor) -> None:
    """Lift the best score where rounding to float32 made an earlier row as good."""
    tied = (scores.argmax(1) != best).nonzero()[:, 0]
    if len(tied):
        top = scores[tied].amax(1)
        scores[tied, best[tied]] = torch.nextafter(top, torch.full_like(top, torch.inf))


class ScreenedHead(nn.Module):
    """Stands in a view for a float32 linear layer over a vocabulary; see the head of this file."""

    def __init__(self, linear: nn.Linear, screen: Screen) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.screen = screen

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits [*, rows] of inputs [*, width]; of few inputs inside `screened` only the arg-max is exact."""
        rows = inputs.numel() // self.in_features
        if not _SCREENING.get() or rows > MOST_ROWS:
            return functional.linear(inputs, self.weight, self.bias)
        flat = inputs.reshape(rows, self.in_features)
        if not bool(flat.isfinite().all()):
            return functional.linear(inputs, self.weight, self.bias)
        return self.screen.find(flat, self.bias).logits.view(*inputs.shape[:-1], self.out_features)


def products_are_exact() -> bool:
    """Tell whether integer products are exact here at their extremes; kernels of old processors saturate."""
    left = torch.full((2, 64), 127, dtype=torch.int8)
    right = torch.full((32, 64), -127, dtype=torch.int8)
    right[::2] = 127
    found = sums(left, right).double()
    return torch.equal(found, left.double() @ right.double().t())


def screened_head(view: Any) -> tuple[nn.Module, str, nn.Linear, ScreenedHead] | None:
    """Return where the head of a view stands, and its screened twin, if a paired trial shows that one row gets quicker.

    None where there is no large float32 head on the processor, or no certain gain.
    """
    head = view.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.dtype != torch.float32 or head.weight.device.type != "cpu":
        return None
    if head.weight.numel() < SMALLEST or head.in_features > WIDEST or head._forward_hooks or not products_are_exact():
        return None
    twin = ScreenedHead(head, Screen(head.weight))
    hidden = torch.randn(1, head.in_features, generator=torch.Generator().manual_seed(0))
    peaked = hidden + head.weight[7].detach() * (3 * hidden.norm() / head.weight[7].detach().norm().clamp(min=1e-30))
    with torch.inference_mode(), screened():
        ratios = paired_ratios(lambda: twin(peaked), lambda: functional.linear(peaked, head.weight), PAIRS)
    if median_interval(ratios)[1] >= WORTHWHILE:
        return None
    for parent in view.modules():
        for name, child in parent.named_children():
            if child is head:
                return parent, name, head, twin
    return None
