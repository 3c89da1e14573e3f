"""MovieLens-100k with 60 noise columns and 5 planted crosses: what selectors keep, and what that does to a DeepFM.

    python -m benchmarks.ranking.planted [--seeds 0 1 2]

Each planted cross is a pair of columns of four values that say nothing alone; the parity of the two agrees with the
label in 57 % of the rows. 9 real single columns (user, item, age, ...), 10 partner columns and 60 noise columns of 2 to
5,000 values make 79 candidates. Selectors see training rows (and, where they need it, validation rows) only. Every
selection is judged by the same DeepFM, trained by the same loop, on the same test rows. The seed moves the planted
columns and the training; the result is kept after each seed, and a seed that is there already is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from lessen.data.catalogue import get
from lessen.data.movielens import TRAIN, encode, load_ratings, partition
from lessen.method import Context
from lessen.methods.features._shared.fields import retrained
from lessen.methods.features.column_selection import ColumnSelection
from lessen.methods.features.optfs import OptFS
from lessen.methods.features.ranked_selection import RankedSelection
from lessen.methods.sites import state_bytes
from lessen.metrics import AUC, Outcomes, bootstrap_weights
from lessen.recipe import Recipe
from lessen.selection.ranking import RankSettings, rank_frame
from lessen.tasks.ctr.base import ClickTask
from lessen.tasks.ctr.movielens import PARTS
from lessen.train.settings import FitSettings

RESULTS = Path(__file__).parents[1] / "results"
CARDINALITIES = (2, 20, 200, 1000, 5000)
AGREEMENT = 0.57
REAL = 9


def planted(seed: int) -> tuple[Any, np.ndarray]:
    ratings, rng = load_ratings(get("movielens-100k")), np.random.default_rng(seed)
    rows = len(ratings)
    for number in range(5):
        left = rng.integers(0, 4, rows)
        truth = np.where(rng.random(rows) < AGREEMENT, ratings.label, 1 - ratings.label).astype(np.int64)
        ratings.single[f"left{number}"] = left.astype(str)
        ratings.single[f"right{number}"] = ((left % 2 ^ truth) + 2 * rng.integers(0, 2, rows)).astype(str)
    for number in range(60):
        values = CARDINALITIES[number % 5]
        ratings.single[f"noise{number}"] = rng.integers(0, values, rows).astype(str)
    return ratings, partition(ratings, "warm")


def task_of(ratings: Any, part: np.ndarray, crosses: list[tuple[str, str]] = ()) -> ClickTask:
    for first, second in crosses:
        pairs = np.char.add(np.char.add(ratings.single[first], "|"), ratings.single[second])
        ratings.single[f"{first}*{second}"] = pairs
    columns, layout = encode(ratings, part, 0)
    for first, second in crosses:
        del ratings.single[f"{first}*{second}"]
    splits = {split: columns.select(part == number) for split, number in PARTS.items()}
    task = ClickTask("deepfm", layout, splits, {"dim": 8, "hidden": (64, 32)})
    task.name = "ctr-movielens100k-planted"
    task.settings = FitSettings(epochs=10, learning_rate=1e-3, table_l2=1e-4, patience=2)
    return task


def baselines(task: ClickTask, count: int, seed: int) -> dict[str, list[str]]:
    """Return the `count` best columns by three selectors of scikit-learn, on integer codes or one-hot columns."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_selection import mutual_info_classif
    from sklearn.inspection import permutation_importance
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import OneHotEncoder

    names = [field.name for field in task.layout.single]
    where = [field.start for field in task.layout.single]
    train, held = (task.splits[split].ids[:, where].numpy() for split in ("train", "validation"))
    label, held_label = task.splits["train"].label.numpy(), task.splits["validation"].label.numpy()
    scores: dict[str, np.ndarray] = {}
    scores["sklearn mutual_info_classif"] = mutual_info_classif(train, label, discrete_features=True)
    offsets = train.min(axis=0)
    boosted = HistGradientBoostingClassifier(max_iter=100, random_state=seed).fit(train - offsets, label)
    scores["permutation of gradient boosting"] = permutation_importance(
        boosted, held - offsets, held_label, scoring="roc_auc", n_repeats=2, random_state=seed
    ).importances_mean
    encoder = OneHotEncoder(handle_unknown="ignore")
    linear = LogisticRegression(l1_ratio=1.0, solver="liblinear", C=0.1, random_state=seed)
    linear.fit(encoder.fit_transform(train), label)
    sizes = np.cumsum([0, *(len(values) for values in encoder.categories_)])
    weight = np.abs(linear.coef_[0])
    scores["L1 logistic regression"] = np.asarray(
        [weight[start:stop].sum() for start, stop in itertools.pairwise(sizes)]
    )
    return {
        name: [names[index] for index in np.argsort(-values, kind="stable")[:count]] for name, values in scores.items()
    }


def pair_times(reference: torch.nn.Module, model: torch.nn.Module, inputs: list[Any], repeats: int = 31) -> list[Any]:
    samples = []
    with torch.no_grad():
        for turn in range(repeats + 3):
            pair = []
            for module, given in zip((reference, model), inputs, strict=True):
                start = time.perf_counter()
                module(**given)
                pair.append(1000 * (time.perf_counter() - start))
            if turn >= 3:
                samples.append(pair)
    return samples


def judge(full: tuple[ClickTask, Any], task: ClickTask, model: Any, weights: np.ndarray) -> dict[str, Any]:
    base_scores, labels = full[0].predictions(full[1])
    scores, _ = task.predictions(model)
    own, base = (AUC.weighted(Outcomes({"score": found, "target": labels}), weights) for found in (scores, base_scores))
    samples = pair_times(full[1], model, [full[0].inputs(full[0].example_batch()), task.inputs(task.example_batch())])
    return {
        "auc": AUC(scores, labels),
        "difference": AUC(scores, labels) - AUC(base_scores, labels),
        "difference_ci": np.quantile(own - base, [0.025, 0.975]).tolist(),
        "stored_bytes": state_bytes(model),
        "ms": statistics.median(pair[1] for pair in samples),
        "latency_ratio": statistics.median(pair[1] / pair[0] for pair in samples),
    }


def kept_counts(names: list[str]) -> dict[str, int]:
    partners = sum(name.startswith(("left", "right")) and "*" not in name for name in names)
    noise = sum(name.startswith("noise") for name in names)
    crosses = sum("*" in name for name in names)
    return {
        "columns": len(names),
        "real": len(names) - partners - noise - crosses,
        "partners": partners,
        "noise": noise,
        "crosses": crosses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "ranking_planted.json"
    seeds: dict[str, Any] = json.loads(path.read_text())["seeds"] if path.exists() else {}
    for seed in options.seeds:
        if str(seed) not in seeds:
            seeds[str(seed)] = one_seed(seed)
            save(path, seeds)
    show(seeds)


def one_seed(seed: int) -> dict[str, Any]:
    ratings, part = planted(seed)
    task = task_of(ratings, part)
    weights = bootstrap_weights(int((part == PARTS["test"]).sum()), 1000, seed=1)
    full = (task, task.reference(seed))
    rows: dict[str, dict[str, Any]] = {"all 79 columns": judge(full, task, full[1], weights)}
    rows["all 79 columns"]["kept"] = kept_counts([field.name for field in task.layout.single])
    frame = pl.DataFrame({name: values[part == TRAIN] for name, values in ratings.single.items()})
    frame = frame.with_columns(pl.Series("label", ratings.label[part == TRAIN].astype(int)))
    start = time.perf_counter()
    ranking = rank_frame(frame, RankSettings(crosses=4000, transforms="none"))
    seconds = time.perf_counter() - start
    found = [(cross.first, cross.second) for cross in ranking.useful_crosses(20)]
    right = sum(a[:4] == "left" and b[:5] == "right" and a[4:] == b[5:] for a, b in found)
    living = [name for name in ratings.single if name not in ranking.dead()]
    run_methods(rows, full, weights, seed)
    silent = {c.name for c in ranking.columns if c.verdict == "noise"}
    quiet = [pair for pair in found if set(pair) <= silent]
    for name, pairs in (("all useful crosses", found), ("crosses of columns that say nothing alone", quiet)):
        used = {column for pair in pairs for column in pair} & silent
        chosen = [n for n in living if n not in used] + [f"{a}*{b}" for a, b in pairs] + ["genres"]
        add(rows, f"lessen rank, {name}", full, task_of(ratings, part, pairs), chosen, weights, seed)
    for name, columns in baselines(task, len(living), seed).items():
        add(rows, f"{name}, as many columns", full, task, [*columns, "genres"], weights, seed)
    oracle = [f"left{i}*right{i}" for i in range(5)]
    truth = task_of(ratings, part, [(f"left{i}", f"right{i}") for i in range(5)])
    real = [name for name in ratings.single if not name.startswith(("left", "right", "noise"))]
    add(rows, "oracle: real columns and the five true crosses", full, truth, [*real, *oracle, "genres"], weights, seed)
    ranks = {
        "crosses_recommended": len(found),
        "of_them_planted": right,
        "planted": 5,
        "dropped_noise": sum(n.startswith("noise") for n in ranking.dead()),
        "dropped_real": [n for n in ranking.dead() if n in real],
        "rank_seconds": seconds,
    }
    return {"ranking": ranks, "rows": rows}


def run_methods(rows: dict[str, Any], full: Any, weights: np.ndarray, seed: int) -> None:
    for name, method in (
        ("ranked-selection", RankedSelection(crosses=4000)),
        ("column-selection", ColumnSelection(repeats=2)),
        ("optfs keep=0.1", OptFS(keep=0.1)),
    ):
        start = time.perf_counter()
        model, (record,) = Recipe([method]).apply(full[1], full[0], seed=seed)
        rows[name] = judge(full, full[0], model, weights) | {"seconds": time.perf_counter() - start}
        if "fields" in record.findings:
            rows[name]["kept"] = kept_counts([n for n in record.findings["fields"]["kept"] if n != "genres"])
        else:
            tables = record.findings["tables"]["vectors.table"]
            noise = [v for n, v in tables.items() if n.startswith("noise")]
            rest = [v for n, v in tables.items() if not n.startswith("noise")]
            rows[name]["rows_kept"] = {
                "noise": [sum(v["kept"] for v in noise), sum(v["of"] for v in noise)],
                "other": [sum(v["kept"] for v in rest), sum(v["of"] for v in rest)],
            }
        print(name, rows[name]["auc"], flush=True)


def add(
    rows: dict[str, Any], name: str, full: Any, task: ClickTask, columns: list[str], weights: np.ndarray, seed: int
) -> None:
    model = retrained(task, columns, Context(seed=seed))
    rows[name] = judge(full, task, model, weights)
    rows[name]["kept"] = kept_counts([column for column in columns if column != "genres"])
    print(name, rows[name]["auc"], flush=True)


def save(path: Path, seeds: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    result = {
        "command": "python -m benchmarks.ranking.planted",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": 1,
        "seeds": seeds,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


def summary(seeds: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one line a selection: means over seeds, and the widest interval of the difference over seeds."""
    lines = []
    for name in next(iter(seeds.values()))["rows"]:
        runs = [seed["rows"][name] for seed in seeds.values()]
        differences = [run["difference"] for run in runs]
        kept = [run["kept"] for run in runs if "kept" in run]
        lines.append(
            {
                "name": name,
                "auc": statistics.mean(run["auc"] for run in runs),
                "aucs": [run["auc"] for run in runs],
                "difference": statistics.mean(differences),
                "differences": differences,
                "low": min(run["difference_ci"][0] for run in runs),
                "high": max(run["difference_ci"][1] for run in runs),
                "bytes": statistics.mean(run["stored_bytes"] for run in runs),
                "time": statistics.median(run["latency_ratio"] for run in runs),
                "kept": {key: statistics.mean(one[key] for one in kept) for key in kept[0]} if kept else None,
                "rows_kept": runs[0].get("rows_kept"),
            }
        )
    return lines


def show(seeds: dict[str, Any]) -> None:
    for number, seed in seeds.items():
        print("seed", number, seed["ranking"])
    print(
        "| selection | AUC | difference [95 %, widest of the seeds] | kB | time | real | partners | noise | crosses |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for line in summary(seeds):
        kept = line["kept"]
        counts = [f"{kept[key]:.3g}" for key in ("real", "partners", "noise", "crosses")] if kept else ["rows"] * 4
        difference = f"{line['difference']:+.4f} [{line['low']:+.4f}, {line['high']:+.4f}]"
        costs = f"{line['bytes'] / 1000:.0f} | {line['time']:.2f}"
        print(f"| {line['name']} | {line['auc']:.4f} | {difference} | {costs} | {' | '.join(counts)} |")


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 4.2), layout="constrained")
    for number, line in enumerate(reversed(lines)):
        own = line["name"].startswith(("lessen", "ranked", "column", "optfs"))
        color, pale = ("#3b74c4", "#9db9e4") if own else ("#5f6b7a", "#bcc3cb")
        axis.plot(line["aucs"], [number] * len(line["aucs"]), "o", color=pale, markersize=4)
        axis.plot(line["auc"], number, "o", color=color)
        axis.annotate(
            f"{line['bytes'] / 1000:.0f} kB, time x{line['time']:.2f}",
            (max(line["aucs"]), number),
            textcoords="offset points",
            xytext=(7, -3),
            fontsize=8,
        )
    axis.set_yticks(range(len(lines)), [line["name"] for line in reversed(lines)])
    axis.set_xlabel("test AUC: each seed, and their mean")
    axis.set_xlim(right=axis.get_xlim()[1] + 0.025)
    axis.grid(axis="y", color="#eceff2")
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
