"""Does the card catch a first layer that switches the cue? Perceptrons of the task `cues`, compressed as they are.

    python -m benchmarks.judges.shortcut [--seeds 5] [--out benchmarks/results]

For each seed a network of three hidden layers is trained where the shortcut is 64 times as available, then its first
layer is cut to rank one, four fifths of each weight are pruned by size, or all weights are rounded to 8 or 3 bits.
Finished seeds are kept: the same command goes on. Writes judges_shortcut.json.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.judges.planted import rank_of
from lessen.environment import environment
from lessen.judges import get_judge
from lessen.tasks.probes.cues import CuesOptions, CuesTask

RESULTS = Path(__file__).parents[1] / "results"
GRID = "grid: shortcut against reliable cue"


def pruned(model: nn.Module, share: float) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in other:
            if isinstance(layer, nn.Linear):
                layer.weight[layer.weight.abs() < layer.weight.abs().flatten().quantile(share)] = 0
    return other


def rounded(model: nn.Module, bits: int) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in other:
            if isinstance(layer, nn.Linear):
                step = layer.weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
                layer.weight.copy_((layer.weight / step).round() * step)
    return other


RECIPES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "rank 1, first layer": lambda model: rank_of(model, 1),
    "prune 80 %": lambda model: pruned(model, 0.8),
    "3 bits": lambda model: rounded(model, 3),
    "8 bits (null)": lambda model: rounded(model, 8),
}


def one(seed: int) -> dict[str, Any]:
    task = CuesTask(CuesOptions(seed=seed))
    dense = task.reference(seed)
    found: dict[str, Any] = {}
    for name, recipe in RECIPES.items():
        judge = get_judge("shortcut", task=task)
        section = judge.compare(judge.outcomes(dense), judge.outcomes(recipe(dense)))
        grid = section.figures[GRID]
        found[name] = {**grid, "accuracy": section.figures["accuracy"], "caught": bool(section.caught)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    path = given.out / "judges_shortcut.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else {}
    for seed in range(given.seeds):
        if str(seed) not in rows:
            rows[str(seed)] = one(seed)
            command = f"python -m benchmarks.judges.shortcut --seeds {given.seeds}"
            path.write_text(
                json.dumps({"command": command, "environment": environment(1), "rows": rows}, indent=1) + "\n"
            )
    for name in RECIPES:
        each = [row[name] for row in rows.values()]
        reliance = [float(np.mean([row[side] for row in each])) for side in ("before", "after")]
        accuracy = np.mean([row["accuracy"] for row in each], axis=0)
        told = f"reliance {reliance[0]:+.2f} to {reliance[1]:+.2f}, accuracy {accuracy[0]:.4f} to {accuracy[1]:.4f}"
        print(f"{name:22} {told}, caught {sum(row['caught'] for row in each)} of {len(each)}")


if __name__ == "__main__":
    main()
