"""Every click model on MovieLens-100k: AUC and log loss, and differences to the plain MLP with paired intervals.

    python -m benchmarks.ctr.movielens --out OUT [--models deepfm dcnv2 ...] [--seeds 0 1 2]
    python -m benchmarks.ctr.movielens --out OUT --table

Each (model, seed) is one file of test scores in OUT, so that a stopped run continues; --table judges what is there and
writes benchmarks/results/ctr_movielens.json and .md. Intervals are over test examples, and seeds where there are
several, paired with the MLP; two models whose interval contains 0 are not told apart by these data.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lessen.frontier.verdict import Difference, paired_difference
from lessen.metrics import AUC, LOGLOSS, Outcomes
from lessen.tasks.ctr.models import MODELS
from lessen.tasks.ctr.movielens import MovieLensClicks, MovieLensOptions

RESULTS = Path(__file__).parents[1] / "results"
PLAIN = "dnn"
EXAMPLES = 9596


def train(out: Path, model: str, seed: int) -> None:
    """Train and keep the test scores."""
    path = out / f"{model}_{seed}.npz"
    if path.exists():
        return
    task = MovieLensClicks(MovieLensOptions(model=model))  # type: ignore[arg-type]
    torch.manual_seed(seed)
    network = task.build()
    did = task.train(network, seed=seed)
    scores, targets = task.predictions(network)
    count = sum(p.numel() for p in network.parameters())
    np.savez(path, scores=scores, targets=targets, seconds=did.seconds, epochs=did.epochs, parameters=count)
    print(f"{model} seed {seed}: AUC {AUC(scores, targets):.4f}, {did.epochs} epochs, {did.seconds:.0f} s", flush=True)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Judge all models whose seeds are those of the plain MLP."""
    runs: dict[str, dict[int, Any]] = {}
    for path in sorted(out.glob("*.npz")):
        name, _, seed = path.stem.rpartition("_")
        runs.setdefault(name, {})[int(seed)] = np.load(path)
    values = {
        name: {seed: AUC.jackknife(_outcomes(run)) for seed, run in seeds.items()} for name, seeds in runs.items()
    }
    rows = []
    for name, seeds in runs.items():
        if set(seeds) != set(runs[PLAIN]):
            continue
        aucs = [float(values[name][seed][0]) for seed in seeds]
        difference = _difference(values, PLAIN, name)
        rows.append(
            {
                "model": name,
                "seeds": sorted(seeds),
                "auc": statistics.fmean(aucs),
                "auc_of_seeds": aucs,
                "logloss": statistics.fmean(LOGLOSS(run["scores"], run["targets"]) for run in seeds.values()),
                "difference": difference.value,
                "low": difference.low,
                "high": difference.high,
                "indistinguishable_from": [
                    other
                    for other in values
                    if other != name and set(values[other]) == set(seeds) and _same(values, name, other)
                ],
                "parameters": int(next(iter(seeds.values()))["parameters"]),
                "epochs": [int(run["epochs"]) for run in seeds.values()],
                "train_seconds": [float(run["seconds"]) for run in seeds.values()],
            }
        )
    return sorted(rows, key=lambda row: -row["auc"])


def _outcomes(run: Any) -> Outcomes:
    return Outcomes({"score": run["scores"], "target": run["targets"]})


def _difference(values: dict[str, Any], one: str, other: str) -> Difference:
    return paired_difference(values[one], values[other], EXAMPLES)


def _same(values: dict[str, Any], one: str, other: str) -> bool:
    difference = _difference(values, one, other)
    return difference.low is None or difference.high is None or difference.low <= 0 <= difference.high


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | AUC | each seed | log loss | AUC less that of the MLP | 95 % interval | told apart from it |"
        " not told apart from | parameters |",
        "|---|---:|---|---:|---:|---|---|---:|---:|",
    ]
    for row in rows:
        if row["model"] == PLAIN:
            verdict, interval, difference = "", "", ""
        else:
            apart = not row["low"] <= 0 <= row["high"]
            verdict = ("better" if row["difference"] > 0 else "worse") if apart else "no"
            difference, interval = f"{row['difference']:+.4f}", f"{row['low']:+.4f} to {row['high']:+.4f}"
        each = ", ".join(f"{value:.4f}" for value in row["auc_of_seeds"])
        lines.append(
            f"| {row['model']} | {row['auc']:.4f} | {each} | {row['logloss']:.4f} | {difference} | {interval} "
            f"| {verdict} | {len(row['indistinguishable_from'])} of {len(rows) - 1} | {row['parameters']:,} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of test scores")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="judge what is there, train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        for seed in options.seeds:
            for model in options.models:
                train(options.out, model, seed)
        return
    rows = rows_of(options.out)
    text = markdown(rows)
    print(text)
    found = {
        "command": "python -m benchmarks.ctr.movielens",
        "split": "warm",
        "test_examples": EXAMPLES,
        "compared_with": PLAIN,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "models": rows,
    }
    (RESULTS / "ctr_movielens.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "ctr_movielens.md").write_text(text)


if __name__ == "__main__":
    main()
