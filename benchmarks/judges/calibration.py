"""Does the interval of a calibration error hold the truth, and the one of a difference?

    python -m benchmarks.judges.calibration [--trials 100] [--out benchmarks/results]

Click models whose logits are too large or too small by a factor; the truth is that of 400,000 units. Writes
judges_calibration.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judges.pairs import AUC_ONLY, Given
from lessen.environment import environment
from lessen.judges import get_judge
from lessen.judges.calibration import BINS
from lessen.metrics import Outcomes
from lessen.metrics.calibration import sigmoid

RESULTS = Path(__file__).parents[1] / "results"
SCALES = ((1.0, 1.0), (1.0, 1.3), (1.0, 2.0), (0.7, 1.0))


def truth(scale: float) -> tuple[float, float]:
    """Return mean absolute and mean square gap of many units."""
    logit = np.random.default_rng(0).normal(0, 1.5, 400_000)
    gap = sigmoid(logit * scale) - sigmoid(logit)
    means = np.array([part.mean() for part in np.array_split(gap[np.argsort(logit)], BINS)])
    return float(np.abs(means).mean()), float((means**2).mean())


def cell(first: float, second: float, trials: int, n: int = 1000) -> dict[str, Any]:
    g, task = np.random.default_rng(1), Given(metrics=AUC_ONLY)
    one, two = truth(first), truth(second)
    held = {"error, uncompressed": 0, "error, compact": 0, "difference": 0, "caught": 0}
    for _ in range(trials):
        logit = g.normal(0, 1.5, n)
        label = (g.random(n) < sigmoid(logit)).astype(np.float64)
        pair = [Outcomes({"score": logit * scale, "target": label}) for scale in (first, second)]
        section = get_judge("calibration", task=task).compare(*pair)
        for name, true in (("uncompressed", one[0]), ("compact", two[0])):
            found = section.figures[name]
            held[f"error, {name}"] += found["low"] - 1e-9 <= true <= found["high"]
        found = section.figures["difference"]
        held["difference"] += found["low"] - 1e-9 <= two[1] - one[1] <= found["high"] + 1e-9
        held["caught"] += bool(section.caught)
    return {"scales": [first, second], "units": n, **{name: count / trials for name, count in held.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = [cell(first, second, given.trials) for first, second in SCALES]
    record = {
        "command": f"python -m benchmarks.judges.calibration --trials {given.trials}",
        "environment": environment(1),
        "rows": rows,
    }
    (given.out / "judges_calibration.json").write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
