"""The tables of docs/weights.md that show the language studies: `python -m benchmarks.language.cross_tables`."""

from __future__ import annotations

import math
from typing import Any

import torch

from benchmarks.guides import Guide, placed, read

STUDENT = {6: 2.447, 7: 2.365, 8: 2.306, 11: 2.201, 15: 2.131, 23: 2.069, 31: 2.04}
"""97.5 % points of Student's t by degrees of freedom."""


TEXTS = {"news": "news", "wikitext": "WikiText-2"}


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


def study(name: str) -> str:
    """Return the rows of a study that were judged."""
    rows = read(name)["rows"]
    texts = [text for text in TEXTS if text in rows["original"]["documents"]]
    head = "| recipe | bits |" + "".join(f" {TEXTS[text]}: perplexity | KL | flips |" for text in texts)
    return f"{head}\n|---|---|{'---|---|---|' * len(texts)}\n" + "".join(line(*row, texts) for row in rows.items())


def line(name: str, row: dict[str, Any], texts: list[str]) -> str:
    found = [figures(row["documents"][text]) for text in texts]
    parts = [f"{one['perplexity']:.2f} | {one['kl']:.3f} | {one['flips']:.1f} %" for one in found]
    bits = "32" if row.get("bits") is None else f"{row['bits']:.2f}"
    return f"| {name} | {bits} | {' | '.join(parts)} |\n"


def equal_bytes() -> str:
    """Return KL of ours as a share of llama.cpp's at no fewer bytes, with its interval over documents."""
    text = "| ours | llama.cpp, importance matrix | KL | ratio of KL, 95 % |\n|---|---|---|---|\n"
    files, forms = read("language_fewbits")["rows"], read("language_importance")["rows"]
    ours = "whole 4 oac searched"
    for name, row in files.items():
        if name.endswith("imatrix") and files[ours]["state_bytes"] <= row["state_bytes"]:
            sizes = [f"{one['state_bytes'] / 1e6:.1f} MB" for one in (files[ours], row)]
            text += _compared(
                (f"{ours}, {sizes[0]}", files[ours]["documents"]), (f"{name}, {sizes[1]}", row["documents"])
            )
    for name, row in forms.items():
        for other, peer in forms.items() if " lessen " in name else ():
            if "llama.cpp" in other and row["bits"] <= peer["bits"] < row["bits"] + 0.5:
                sizes = [f"{one['bits']:.2f} bits" for one in (row, peer)]
                both = [one["documents"]["news"] for one in (row, peer)]
                text += _compared((f"{name}, {sizes[0]}", both[0]), (f"{other}, {sizes[1]}", both[1]))
    return text


def _compared(one: tuple[str, Any], other: tuple[str, Any]) -> str:
    share, low, high = ratio(one[1], other[1], "kl")
    kl = " and ".join(f"{figures(each)['kl']:.3f}" for _, each in (one, other))
    return f"| {one[0]} | {other[0].replace('llama.cpp ', '')} | {kl} | {share:.2f} [{low:.2f}, {high:.2f}] |\n"


def second_machine(name: str = "Emerald Rapids") -> str:
    """Return tokens a second on a further machine, and there the comparisons that the page makes on the first."""
    case = placed("1 threads", name)
    found, pairs = read("language_speed")[case], read("language_decode_pairs")[case]
    text = "| | prefill of 512 | decode behind 64 |\n|---|---|---|\n"
    rates = {}
    for mode, row in found["seconds"].items():
        rates[mode] = found["prompt"] / row["prefill"]["cpu"], 1 / row["decode"]["cpu"]
        text += f"| {mode} | {rates[mode][0]:.0f} | {rates[mode][1]:.0f} |\n"
    (prefill, decode), stock = rates["lessen 4 bits"], rates["torch fp32"]
    peers = max(rate[0] for mode, rate in rates.items() if mode.startswith("llama.cpp"))
    band = read("language_bandwidth")[placed("4 bits, 1 threads", name)]
    ours, other = (1e3 * band["seconds"][mode]["cpu"] for mode in ("decode", "llama.cpp Q4_0"))
    low, high = pairs["interval"]
    return text + (
        "\n| 4 bits | |\n|---|---|\n"
        f"| one token, times as fast as llama.cpp's Q4_0, {pairs['pairs']} pairs "
        f"| {pairs['faster']:.2f} [{low:.2f}, {high:.2f}] |\n"
        f"| prefill, over llama.cpp's best form | {prefill / peers:.1f} |\n"
        f"| prefill and decode, over torch's float32 | {prefill / stock[0]:.1f} and {decode / stock[1]:.1f} |\n"
        f"| 1.1 billion weights, a token: ours, llama.cpp | {ours:.1f} ms, {other:.1f} ms |\n"
        f"| of the rate at which torch reads as many bytes | {100 * band['share']['cpu']:.0f} % |\n"
    )


GUIDE = Guide(
    "weights",
    {
        "second-machine": second_machine,
        "language-study": lambda: study("language_smollm2"),
        "gemma-study": lambda: study("language_gemma3"),
        "equal-bytes": equal_bytes,
    },
)

if __name__ == "__main__":
    GUIDE.write()
