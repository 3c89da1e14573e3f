"""The tables of docs/weights.md that show the language studies: `python -m benchmarks.language.cross_tables`."""

from __future__ import annotations

import math
from typing import Any

import torch

from benchmarks.guides import read

STUDENT = {6: 2.447, 7: 2.365, 8: 2.306, 11: 2.201, 15: 2.131, 23: 2.069, 31: 2.04}
"""97.5 % points of Student's t by degrees of freedom."""


def figures(documents: dict[str, list[float]]) -> dict[str, float]:
    """Return perplexity, KL in nats a token and the share of flipped tokens, in percent."""
    tokens = sum(documents["tokens"])
    return {
        "perplexity": round(math.exp(min(700.0, sum(documents["nll"]) / tokens)), 2),
        "kl": round(sum(documents["kl"]) / tokens, 4),
        "flips": round(100 * sum(documents["flips"]) / tokens, 2),
    }


def apart(one: dict[str, list[float]], other: dict[str, list[float]], name: str) -> tuple[float, float, float]:
    """Return the mean of one minus other over tokens and its 95 % interval: a jackknife over documents."""
    a, b, n = (torch.tensor(x, dtype=torch.float64) for x in (one[name], other[name], one["tokens"]))
    difference = a - b
    whole = float(difference.sum() / n.sum())
    left = (difference.sum() - difference) / (n.sum() - n)
    half = _point(len(n)) * float(((len(n) - 1) / len(n) * (left - left.mean()).square().sum()).sqrt())
    return whole, whole - half, whole + half


def ratio(one: dict[str, list[float]], other: dict[str, list[float]], name: str) -> tuple[float, float, float]:
    """Return the sum of one over that of other and its 95 % interval: a jackknife of the logarithm over documents."""
    a, b = (torch.tensor(x[name], dtype=torch.float64) for x in (one, other))
    whole = float((a.sum() / b.sum()).log())
    left = ((a.sum() - a) / (b.sum() - b)).log()
    half = _point(len(a)) * float(((len(a) - 1) / len(a) * (left - left.mean()).square().sum()).sqrt())
    return math.exp(whole), math.exp(whole - half), math.exp(whole + half)


def _point(documents: int) -> float:
    return STUDENT[max((known for known in STUDENT if known < documents), default=6)]


def line(name: str, row: dict[str, Any]) -> str:
    parts = []
    for text in ("news", "wikitext"):
        if text in row["documents"]:
            found = figures(row["documents"][text])
            parts += [f"{found['perplexity']:.2f}", f"{found['kl']:.3f}", f"{found['flips']:.1f} %"]
        else:
            parts += ["", "", ""]
    bits = "32" if row.get("bits") is None else f"{row['bits']:.2f}"
    return f"| {name} | {bits} | {' | '.join(parts)} |\n"


def smollm2() -> str:
    rows = read("language_smollm2")["rows"]
    head = (
        "| recipe | bits | news: perplexity | KL | flips | WikiText-2: perplexity | KL | flips |\n" + 8 * "|---" + "|\n"
    )
    return head + "".join(line(name, row) for name, row in rows.items())
