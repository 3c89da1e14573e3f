"""Inputs skipped against quality: plain training, DropAM and DistillAM, on digits with hints and on clicks.

python -m benchmarks.distil.missing            # writes benchmarks/results/distil_missing.json
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.distil.hints import HintsTask
from benchmarks.distil.results import write
from lessen.methods.distil._shared.optional import Optional
from lessen.methods.distil.distill_am import DistillAM
from lessen.methods.distil.drop_am import DropAM
from lessen.recipe import Recipe
from lessen.task import Task
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions

SEEDS = range(5)


def tried(task: Task, groups: tuple[str, ...], seed: int) -> dict[str, dict[str, float]]:
    """Return the test score by what is skipped, for each way of training from the same reference."""
    plain = task.reference(seed)
    optional = Optional(task, groups)
    found = {"plain": optional.scores(plain, "test")}
    ways = {"drop-am": DropAM(inputs=groups, start="fresh"), "distill-am": DistillAM(inputs=groups, start="fresh")}
    for name, method in ways.items():
        model, _ = Recipe([method]).apply(plain, task, seed=seed)
        found[name] = optional.scores(model, "test")
    return found


def gathered(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return mean and standard error over seeds, and paired differences to plain training."""
    table: dict[str, Any] = {}
    for way in runs[0]:
        table[way] = {}
        for pattern in runs[0][way]:
            values = [run[way][pattern] for run in runs]
            gaps = [run[way][pattern] - run["plain"][pattern] for run in runs]
            table[way][pattern] = {
                "mean": statistics.mean(values),
                "minus plain": statistics.mean(gaps),
                "standard error of that": statistics.stdev(gaps) / len(gaps) ** 0.5,
            }
    return table


def main() -> None:
    """Run both tasks and print the table."""
    torch.set_num_threads(1)
    clicks = SyntheticOptions(rows=20_000, fields=6, strength=1.5)
    names = tuple(field.name for field in SyntheticClicks(clicks).layout.fields)
    tasks: dict[str, tuple[Any, tuple[str, ...]]] = {
        "digits with hints": (HintsTask, HintsTask.optional),
        "clicks": (lambda seed: SyntheticClicks(clicks.model_copy(update={"seed": seed})), (names[-2], names[-1])),
    }
    found = {}
    for name, (make, groups) in tasks.items():
        runs = [tried(make(seed=seed), groups, seed) for seed in SEEDS]
        found[name] = {"skippable": list(groups), "seeds": len(runs), "table": gathered(runs), "runs": runs}
        for way, row in found[name]["table"].items():
            print(name, way, {pattern: round(one["mean"], 4) for pattern, one in row.items()})
    write(Path("benchmarks/results/distil_missing.json"), found, "python -m benchmarks.distil.missing")


if __name__ == "__main__":
    main()
