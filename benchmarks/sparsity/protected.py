"""Class-dependent pruning against its control: the class-blind ticket with its threshold moved.

    python -m benchmarks.sparsity.protected [--seconds 170]     # writes benchmarks/results/sparsity_protected.json

Drawn shapes of low contrast; rings are one picture in ten and must not be missed. A convolutional network is pruned
in three rounds of a half each, from one start, three seeds (width and rounds were chosen on validation pictures of
another seed: half the width in five rounds leaves networks that answer one kind only). `blind` is class_weight 1; the
control takes the blind network and lowers its threshold until, on validation, as many other pictures are taken for
rings as the weighted network takes. Misses and false finds are then counted on 4,000 test pictures. Finished runs are
kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.distil.networks import SmallCnn
from benchmarks.distil.results import paired, write
from lessen.methods.weights.class_dependent import ClassDependent
from lessen.recipe import Recipe
from lessen.sparsity.protected import Missed, area, chance, threshold_for
from lessen.task import Split, Task
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask, shapes
from lessen.train.settings import FitSettings

RESULT = Path("benchmarks/results/sparsity_protected.json")
RING, SEEDS, EPOCHS, ROUNDS = 3, range(3), 8, 3
WEIGHTED = {"weight 3": (3.0, 0.0), "weight 10": (10.0, 0.0), "weight 3, rank 10": (3.0, 10.0)}
SETTINGS = FitSettings(epochs=EPOCHS, learning_rate=4e-3, patience=None)


def rare(pictures: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pictures with every third ring only."""
    rings = (kinds == RING).nonzero()[:, 0]
    kept = torch.ones(len(kinds), dtype=torch.bool)
    kept[rings] = torch.arange(len(rings)) % 3 == 0
    return pictures[kept], kinds[kept]


def pictures() -> tuple[Task, dict[str, tuple[Tensor, Tensor]]]:
    """Return the task, and its validation and test pictures."""
    sizes = {"train": 2000, "validation": 1500, "test": 5000}
    held = {name: rare(*shapes(count, "faded", 50 + number)) for number, (name, count) in enumerate(sizes.items())}

    def batches(split: Split, seed: int = 0) -> Iterator[Any]:
        given, kinds = held[split]
        order = torch.arange(len(kinds))
        if split == "train":
            order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed))
        for rows in torch.split(order, 64):
            yield given[rows], kinds[rows]

    task = ShapesTask(ShapesOptions(style="faded"))
    return task.view(batches=batches, settings=SETTINGS, build=lambda: SmallCnn(32)), held


def tickets(task: Task, seed: int) -> dict[str, Any]:
    """Return the pruned networks of a seed by name, and the dense one."""
    found: dict[str, Any] = {}
    for name, (weight, rank) in {"blind": (1.0, 0.0), **WEIGHTED}.items():
        torch.manual_seed(seed)
        step = ClassDependent(protected=RING, class_weight=weight, rank_weight=rank, rounds=ROUNDS, min_weights=128)
        found[name], _ = Recipe([step]).apply(task.build(), task, seed=seed)
    torch.manual_seed(seed)
    found["dense"] = task.build()
    with torch.random.fork_rng():
        task.train(found["dense"], seed=seed)
    return found


@torch.no_grad()
def judged(made: dict[str, Any], held: dict[str, tuple[Tensor, Tensor]]) -> dict[str, dict[str, float]]:
    """Return, by name, the area under the curve and what is missed and falsely found; with controls."""
    chances = {
        name: {split: chance(model.eval()(held[split][0]), RING) for split in ("validation", "test")}
        for name, model in made.items()
    }
    ours = {split: held[split][1] == RING for split in ("validation", "test")}
    found: dict[str, dict[str, float]] = {}

    def count(name: str, threshold: float) -> dict[str, float]:
        missed = Missed.count(chances[name]["test"], ours["test"], threshold)
        others = int((~ours["test"]).sum())
        return {"missed": missed.false_negatives / missed.ours, "false": missed.false_positives / others}

    for name in made:
        found[name] = {"auc": area(chances[name]["test"], ours["test"]), **count(name, 0.5)}
    for name in WEIGHTED:
        false = Missed.count(chances[name]["validation"], ours["validation"]).false_positives
        moved = threshold_for(chances["blind"]["validation"], ours["validation"], false)
        found[f"blind, threshold as {name}"] = {"auc": found["blind"]["auc"], **count("blind", moved)}
    return found


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Return means over seeds, and what each weight changes against its control, paired."""
    seeds = list(runs.values())
    found: dict[str, Any] = {
        name: {column: statistics.mean(run[name][column] for run in seeds) for column in ("auc", "missed", "false")}
        for name in seeds[0]
    }
    if len(seeds) == len(SEEDS):
        for name in WEIGHTED:
            for column in ("auc", "missed", "false"):
                other = f"blind, threshold as {name}"
                gap = paired([run[name][column] for run in seeds], [run[other][column] for run in seeds])
                found[name][f"{column} against control"] = [gap["difference"], gap["low"], gap["high"]]
    return found


def main() -> None:
    """Make what is missing, within the seconds of the processor given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1e9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, Any] = json.loads(RESULT.read_text())["results"]["runs"] if RESULT.exists() else {}
    task, held = pictures()
    for seed in SEEDS:
        if str(seed) in runs or time.process_time() > asked.seconds:
            continue
        runs[str(seed)] = judged(tickets(task, seed), held)
        rings = int((held["test"][1] == RING).sum())
        settings = {"epochs": EPOCHS, "rounds": ROUNDS, "density": 0.5**ROUNDS, "test rings": rings}
        results = {"settings": settings, "runs": runs, "summary": summary(runs)}
        write(RESULT, results, "python -m benchmarks.sparsity.protected")
        print(seed, json.dumps(results["summary"]), flush=True)


if __name__ == "__main__":
    main()
