"""Probabilities and divergences with loops, to compare with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def softmax(row: list[float]) -> list[float]:
    exps = [math.exp(value) for value in row]
    return [value / sum(exps) for value in exps]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def logits(rows: int = 5, classes: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(rows, classes, generator=generator) for _ in range(2))  # type: ignore[return-value]
