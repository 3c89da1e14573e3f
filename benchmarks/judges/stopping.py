"""How often is a verdict wrong when a study stops as soon as it is certain, and how many seeds does that save?

    python -m benchmarks.judges.stopping [--trials 1000] [--cells 24] [--out benchmarks/results]

Each trial draws a test set, models of up to K seeds and their compact forms, whose true loss is given, and looks after
every seed from the second on, by the functions of lessen; the last look is the usual verdict. False is "worse" with a
true loss at the margin, and "within margin" or "better" with one at it. Writes judges_stopping.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from lessen.environment import environment
from lessen.frontier.early import SPENT, early_verdict
from lessen.frontier.verdict import UNKNOWN, WORSE, judge, paired_difference

RESULTS = Path(__file__).parents[1] / "results"
MARGIN, UNITS = 0.02, 400


def values(moved: np.ndarray) -> np.ndarray:
    """Return a mean and the mean without each unit: the jackknife of a mean."""
    n = len(moved)
    return np.concatenate([[moved.mean()], (moved.sum() - moved) / (n - 1)])


def one(g: np.random.Generator, loss: float, spread: float, seeds: int) -> tuple[int, str, str]:
    """Return the seeds after which the study stops, its verdict, and that of all seeds."""
    shared = 0.1 * g.normal(size=UNITS)
    reference, compact, stopped = {}, {}, None
    zero = np.zeros(UNITS + 1)
    for seed in range(seeds):
        reference[seed] = zero
        compact[seed] = values(-(loss + spread * g.normal() + shared + 0.1 * g.normal(size=UNITS)))
        if 0 < seed < seeds - 1 and stopped is None:
            found = early_verdict(paired_difference(reference, compact, UNITS), MARGIN, seeds)
            if found.verdict != UNKNOWN:
                stopped = seed + 1, found.verdict
    last = judge(paired_difference(reference, compact, UNITS), MARGIN).verdict
    return (*(stopped or (seeds, last)), last)


def side(verdict: str) -> str:
    """Return which side of the margin a verdict says the loss is on."""
    return verdict if verdict in (WORSE, UNKNOWN) else "kept"


def cell(trials: int, loss: float, spread: float, seeds: int) -> dict[str, Any]:
    g = np.random.default_rng([seeds, int(1e4 * spread), int(1e4 * (loss + 1))])
    found = [one(g, loss, spread, seeds) for _ in range(trials)]
    said = [verdict for _, verdict, _ in found]
    return {
        "seeds": seeds,
        "true loss": loss,
        "spread": spread,
        "worse": said.count(WORSE) / trials,
        "kept": sum(each not in (WORSE, UNKNOWN) for each in said) / trials,
        "seeds run": float(np.mean([run for run, _, _ in found])),
        "as with all seeds": float(np.mean([side(verdict) == side(last) for _, verdict, last in found])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=24, help="cells of this run; those that are there are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    path = given.out / "judges_stopping.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    cells = [
        (loss, spread, seeds)
        for seeds in (5, 10)
        for spread in (0.0, 0.002, 0.01)
        for loss in (MARGIN, -0.02, 0.06, 0.2)
    ]
    for loss, spread, seeds in cells[len(rows) : len(rows) + given.cells]:
        rows.append(cell(given.trials if loss == MARGIN else given.trials // 10, loss, spread, seeds))
    record = {
        "command": f"python -m benchmarks.judges.stopping --trials {given.trials}",
        "margin": MARGIN,
        "spent before the last look": SPENT,
        "environment": environment(1),
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(
            *(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
        )


if __name__ == "__main__":
    main()
