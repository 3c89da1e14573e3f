"""Sentences and table rows of the pages on judging and on distillation, made from committed results."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.guides import read


def judging() -> Iterator[str]:
    passed = {row["inputs"]: row["within one point"] for row in read("judges_thresholds")["rows"]}
    yield f"within one point in {100 * passed[500]:.0f} % of draws, on 2,000 in {100 * passed[2000]:.0f} %"
    yield "holds the truth 95 times in 100 whatever the share is"
    yield "whose shortcut is 64 times as available as the reliable cue"
    yield from _flips(read("judges_flips"))
    yield from _controls(read("judges_controls")["rows"])
    yield from _cue(list(read("judges_shortcut")["rows"].values()))
    yield from _stopping(read("judges_stopping"))
    yield from _calibration(read("judges_calibration")["rows"])


def _flips(found: dict[str, Any]) -> Iterator[str]:
    coverage, exact = found["coverage"], found["net loss, all outcomes"]
    least = min(row["covered"] for row in coverage)
    pairs = {(row["n"], row["share"]) for row in coverage}
    yield f"test sets for each of {len(pairs)} pairs of size and share"
    yield f"coverage of {100 * least:.1f} % or more in every cell"
    yield f"(two standard errors are {100 * 2 * (0.95 * 0.05 / 10_000) ** 0.5:.1f} points)"
    width = max(row["width"] for row in coverage if row["what"] == "flips" and row["share"])
    yield f"a mean width of at most {width:.2f} times that of Clopper and Pearson's interval"
    yield (
        f"for net losses {exact['width mean']:.2f} times the exact unconditional one on average and "
        f"{exact['width worst']:.2f} times at worst (n = {exact['n']})"
    )
    yield f"in at most {100 * max(row['alarms'] for row in found['nulls']):.1f} % of 2,000 nulls"

    def power(accuracy: float, flips: float, part: int) -> str:
        rows = {row["examples"]: row["power"] for row in found["power"]
                if (row["accuracy"], row["flips"]) == (accuracy, flips)}  # fmt: skip
        return f"{100 * rows[max(rows) // part]:.0f} %"

    yield "two accuracies of 0.6 needs to find a loss of one point"
    yield f"with a chance of {power(0.6, 0.12, 4)} at 12 % flips and {power(0.6, 0.06, 4)} at 6 %"
    yield f"with a sixteenth, {power(0.6, 0.03, 16)} at 3 % flips"
    yield "at an accuracy of 0.9 it is four at 4 % flips"
    yield f"too few for 6 % flips ({power(0.9, 0.06, 4)})"


CONTROLS = {
    "metrics": ("4 points of accuracy", "2 % lost, as many gained"),
    "flips": ("5 % lost, 2 % gained of 3,000", "1.6 % each way"),
    "slices": ("one city of 40 loses half", "losses everywhere alike"),
    "rare": ("noise on ids seen under 5 times", "noise on all"),
    "calibration": ("logits doubled", "noise"),
    "ood": ("scores halved, no answer flips", "weights moved by 1e-4"),
    "shortcut": ("reads the shortcut alone", "weights moved by 1 %"),
    "complexity": ("blocks pass their input on", "weights moved by 0.1 %"),
    "representation": ("rank 1 of the last layer", "weights moved by 1e-4"),
    "width": ("one of 48 last features is left", "weights moved by 0.1 %"),
    "attribution": ("reads the other corner, as accurate", "weights moved by 0.1 %"),
    "multiple-choice": ("30 % of the answers forgotten in place of 10 %", "the same answers"),
    "association": ("a bag of concepts", "vectors moved by 1 %"),
    "conditional": ("hears a fifth of the text", "vectors moved by 1 %"),
    "video": ("one frame of eight", "the same"),
}
"""What each control plants (settings of the benchmark): a fault, and a change that is none."""


def _controls(rows: dict[str, Any]) -> Iterator[str]:
    assert set(CONTROLS) == set(rows)
    for name, (fault, harmless) in CONTROLS.items():
        row = rows[name]
        caught, alarms = (f"{row[key]} of {row['seeds']}" for key in ("fault caught", "null not silent"))
        yield f"| `{name}` | {fault} | {caught} | {harmless} | {alarms} |"


def _cue(seeds: list[dict[str, Any]]) -> Iterator[str]:
    for name in seeds[0]:
        rows = [seed[name] for seed in seeds]
        before, after = (statistics.fmean(row["accuracy"][k] for row in rows) for k in (0, 1))
        was, became = (statistics.fmean(row[key] for row in rows) for key in ("before", "after"))
        caught = sum(row["caught"] for row in rows)
        yield f"| {name} | {before:.3f} to {after:.3f} | {was:+.2f} to {became:+.2f} | {caught} of {len(rows)} |"


def _stopping(found: dict[str, Any]) -> Iterator[str]:
    margin, rows = found["margin"], found["rows"]
    at = [row for row in rows if row["true loss"] == margin]
    worse, kept = (100 * max(row[key] for row in at) for key in ("worse", "kept"))
    yield f'is "worse" in at most {worse:.1f} % and "within margin" or "better" in at most {kept:.1f} % of the trials'

    def run(seeds: int, loss: float, spread: float) -> float:
        (row,) = (r for r in rows if (r["seeds"], r["true loss"], r["spread"]) == (seeds, loss, spread))
        return float(row["seeds run"])

    yield f"is told after {run(5, 0.2, 0.0):.1f} of 5 and {run(10, 0.2, 0.0):.1f} of 10 seeds on average"
    yield f"after {run(5, 0.06, 0.0):.1f} and {run(10, 0.06, 0.0):.1f} where the seeds hardly differ"
    yield f"{run(5, 0.06, 0.01):.1f} and {run(10, 0.06, 0.01):.1f} where they differ by half the margin"


def _calibration(rows: list[dict[str, Any]]) -> Iterator[str]:
    least = min(row[f"error, {which}"] for row in rows for which in ("uncompressed", "compact"))
    yield f"it holds the truth in {100 * least:.0f} % of 100 draws or more"
    pairs = [row["difference"] for row in rows]
    yield f"whose paired interval holds {100 * min(pairs):.0f} to {100 * max(pairs):.0f} %"
    caught = {row["scales"][1]: row["caught"] for row in rows if row["scales"][0] == 1.0}
    assert caught[1.0] == 0
    yield f"logits 1.3 times too large are caught in {100 * caught[1.3]:.0f} %, twice too large in {100 * caught[2.0]:.0f} %"


def distil() -> Iterator[str]:
    for name, row in read("distil_steps")["results"].items():
        if name != "note":
            cells = (row[key] for key in ("with teacher / (teacher + student)", "from cache / student"))
            shown = " | ".join(f"{cell['median']:.2f} ({cell['low']:.2f} to {cell['high']:.2f})" for cell in cells)
            yield f"| {name} | {shown} |"
    yield from _width(read("distil_mup")["results"])


def _width(found: dict[str, Any]) -> Iterator[str]:
    sharp = {kind: ", ".join(f"{found[f'{kind} {width}']['sharpness at 2^-8']:.1f}" for width in (64, 256, 512))
             for kind in ("standard", "muP")}  # fmt: skip
    rates = {kind: [f"2^{found[f'{kind} {width}']['log2 of best rate']:.0f}" for width in (64, 256, 512)]
             for kind in ("standard", "muP")}  # fmt: skip
    torch, mup = (f"{a}, {b} and {c}" for a, b, c in rates.values())
    yield f"is {torch} as torch starts a network, and {mup} under `lessen.train.mup`"
    yield f"the sharpness at 2^-8 after training is {sharp['standard']} against {sharp['muP']}"
