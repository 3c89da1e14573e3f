"""How near does a threshold set anew on n unlabelled inputs come to the 95 % that it should pass?

    python -m benchmarks.judges.thresholds [--trials 10000] [--out benchmarks/results]

Any continuous score gives the same answer, for a threshold is a quantile: scores are drawn from a normal distribution.
Writes judges_thresholds.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import NormalDist

import numpy as np

from lessen.environment import environment
from lessen.judges.ood import TARGET

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    g, rows, normal = np.random.default_rng(0), [], NormalDist()
    for n in (200, 500, 2000):
        cuts = [float(np.quantile(g.normal(size=n), 1 - TARGET)) for _ in range(given.trials)]
        passed = np.array([1 - normal.cdf(cut) for cut in cuts])
        rows.append({
            "inputs": n,
            "mean": float(passed.mean()),
            "standard deviation": float(passed.std()),
            "within one point": float((np.abs(passed - TARGET) <= 0.01).mean()),
        })  # fmt: skip
        print(rows[-1])
    command = f"python -m benchmarks.judges.thresholds --trials {given.trials}"
    record = {"command": command, "environment": environment(1), "rows": rows}
    (given.out / "judges_thresholds.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
