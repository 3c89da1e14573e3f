"""Frontier of embedding methods: share of the tables' bytes, AUC difference with paired interval, training time.

    python -m benchmarks.embeddings.study studies/embeddings-movielens.yaml OUT [--seconds 200] [--only "* 10 %"]

Runs the study in OUT as `lessen run STUDY --out OUT --resume` does, and its `--seconds` and `--only`; call it again to
go on. Then writes NAME.json (each seed), NAME.md and a picture from the recipes with all seeds done: into
benchmarks/results where all of the study is done, otherwise into OUT: a part never takes the place of the whole.
Intervals are over seeds and test rows, paired (three seeds make them wide); those of results committed before
2026-11-30 are Student's over the seeds alone. `--times` also times the lookups of the test ids, compact against full
tables, paired and in turns, where that was not done.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot

from lessen.artifact import folder as artifact
from lessen.environment import environment
from lessen.frontier.records import REFERENCE, outcome_path
from lessen.frontier.verdict import Difference, paired_difference
from lessen.measure.latency import compare_latency
from lessen.metrics.storage import read_jackknife, read_outcomes
from lessen.recipe import Recipe
from lessen.study.folder import StudyFolder, read_json
from lessen.study.run import run
from lessen.study.schema import Study

RESULTS = Path(__file__).parents[1] / "results"
IMAGES = Path(__file__).parents[2] / "docs" / "images"
FEW = 5
"""Recipes that need no picture."""
BATCH = 4096
"""Examples of a timed lookup, at most."""
HEADS = ("recipe", "share of table bytes", "AUC difference", "95 % interval", "each seed", "training, s", "lookup time")


def time_lookups(study: Study, folder: StudyFolder, rounds: int = 40) -> None:
    """Time the field vectors of the test ids with the first seed's tables, one thread, against the full tables."""
    seed = study.seeds[0]
    batches = [batch[0]["ids"][:BATCH] for batch in itertools.islice(study.task.batches("test"), 8)]
    full = artifact.load(folder.reference(seed)).get_submodule("vectors")
    for recipe in study.recipes:
        place = timing(folder, recipe.name)
        made = folder.artifact(recipe.name, seed)
        known = (read_json(place) or {}).get("hash") == recipe.hash
        if known or folder.finished(recipe.name, recipe.hash, seed) is None:
            continue
        compact = artifact.load(made).get_submodule("vectors")
        found = compare_latency(full, compact, batches, rounds=rounds, batch_examples=len(batches[0]))
        interval = [found.ratio_low, found.ratio_high]
        folder.write_json(place, {"hash": recipe.hash, "ratio": found.ratio, "interval": interval})


def timing(folder: StudyFolder, recipe: str) -> Path:
    return folder.root / "lookups" / folder.compressed_file(recipe, 0).name


def rows_of(study: Study, folder: StudyFolder, failed: dict[str, str]) -> list[dict[str, Any]]:
    """Return one row for each recipe that is done for all seeds, or refused; largest share first.

    Args:
        failed: reasons of the recipes that could not be measured, by name.
    """
    tables = sum(
        4 * part.weight.numel() for part in study.task.build().modules() if isinstance(part, torch.nn.Embedding)
    )
    rows = []
    for recipe in study.recipes:
        row: dict[str, Any] = {"recipe": recipe.name, "composed": len(recipe.steps) > 1}
        seeds = {seed: folder.finished(recipe.name, recipe.hash, seed) for seed in study.seeds}
        if recipe.name in failed:
            rows.append({**row, "refused": failed[recipe.name]})
        elif all(seeds.values()):
            timed = read_json(timing(folder, recipe.name)) or {}
            lookup = timed if timed.get("hash") == recipe.hash else {}
            times = {"lookup_ratio": lookup.get("ratio"), "lookup_interval": lookup.get("interval")}
            judged = difference(folder, recipe, seeds)
            rows.append({**row, **row_of(seeds, tables, judged), **times})
    return sorted(rows, key=lambda row: -row.get("share", 0.0))


def difference(folder: StudyFolder, recipe: Recipe, seeds: Iterable[int]) -> Difference:
    """Return the paired difference in AUC over seeds and test rows, from the outcomes that the jobs kept."""
    sides = [
        {seed: read_jackknife(outcome_path(folder.root, name, seed))["auc"] for seed in seeds}
        for name in (REFERENCE, recipe.name)
    ]
    rows = read_outcomes(outcome_path(folder.root, REFERENCE, next(iter(seeds))))
    return paired_difference(*sides, 0 if rows is None else len(rows))


def row_of(seeds: dict[int, Any], tables: int, judged: Difference) -> dict[str, Any]:
    """Return what is left of the `tables` bytes, and AUC differences with their interval."""
    first = next(iter(seeds.values()))
    freed = first["steps"][0]["bytes_before"] - first["steps"][-1]["bytes_after"]
    return {
        "share": 1 - freed / tables,
        "stored_bytes": first["cost"]["stored_bytes"],
        "auc_difference": judged.value,
        "low": judged.low,
        "high": judged.high,
        "per_seed": list(judged.per_seed),
        "train_seconds": min(record["cost"]["train_s"] for record in seeds.values()),
        "steps": [{step["method"]: step["knobs"]} for step in first["steps"]],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [f"| {' | '.join(HEADS)} |", "|---|---:|---:|---|---|---:|---:|"]
    for row in rows:
        if "refused" in row:
            continue
        seeds = ", ".join(f"{value:+.4f}" for value in row["per_seed"])
        lookup = "" if row["lookup_ratio"] is None else f"{row['lookup_ratio']:.1f}x"
        lines.append(
            f"| {row['recipe']} | {100 * row['share']:.2f} % | {row['auc_difference']:+.4f} "
            f"| {row['low']:+.4f} to {row['high']:+.4f} | {seeds} | {row['train_seconds']:.0f} | {lookup} |"
        )
    refused = [row for row in rows if "refused" in row]
    if refused:
        lines += ["", "Refused:", "", *(f"- {row['recipe']}: {row['refused']}" for row in refused)]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw share of the bytes against the AUC difference; name what nothing smaller or equal beats."""
    done = sorted((row for row in rows if "share" in row), key=lambda row: (row["share"], -row["auc_difference"]))
    figure, axes = pyplot.subplots(figsize=(9, 5.2), layout="constrained")
    for composed, marker, label in ((False, "o", "one method"), (True, "D", "composed")):
        chosen = [row for row in done if row["composed"] == composed]
        where = [[100 * row["share"] for row in chosen], [row["auc_difference"] for row in chosen]]
        axes.scatter(
            *where, s=22, marker=marker, facecolors="none" if composed else "#9a9a9a", edgecolors="#777", label=label
        )
    best, leaders = -math.inf, []
    for row in done:
        if row["auc_difference"] > best:
            best = row["auc_difference"]
            leaders.append(row)
    axes.plot(
        [100 * row["share"] for row in leaders], [row["auc_difference"] for row in leaders], color="#1f6f4a", lw=1
    )
    for number, row in enumerate(leaders):
        axes.annotate(
            row["recipe"],
            (100 * row["share"], row["auc_difference"]),
            color="#1f6f4a",
            fontsize=8,
            rotation=20,
            xytext=(4, 5 if number % 2 else -14),
            textcoords="offset points",
        )
    axes.axhline(0, color="#bbb", lw=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=0.002)
    axes.set_ylim(-0.3, 0.01)
    ticks = [share for share in (0.1, 1, 5, 10, 20, 50) if share >= 50 * done[0]["share"]]
    axes.set_xticks(ticks, [f"{share:g} %" for share in ticks])
    axes.minorticks_off()
    axes.set(xlabel="share of the bytes of all tables", ylabel="AUC difference from the full tables")
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def place_of(study: Study, rows: list[dict[str, Any]], out: Path) -> tuple[Path, Path]:
    """Return where results and picture are written: among the committed ones only when the study is whole."""
    name = study.name.replace("-", "_")
    whole = {row["recipe"] for row in rows} == {recipe.name for recipe in study.recipes}
    return (RESULTS / name, IMAGES / f"{name}.png") if whole else (out / name, out / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--only", help="glob over recipe names")
    parser.add_argument("--times", action="store_true", help="time lookups too: the machine should be quiet")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study, folder = Study.load(args.study), StudyFolder(args.out)
    result = run(study, args.out, resume=True, only=args.only, seconds=args.seconds)
    if args.times:
        time_lookups(study, folder)
    rows = rows_of(study, folder, {record["recipe"]: record["error"] for record in result.failed})
    text = markdown(rows)
    place, picture = place_of(study, rows, args.out)
    command = f"python -m benchmarks.embeddings.study studies/{study.name}.yaml OUT"
    record = {"command": command, "environment": environment(1), "task": study.task.describe(), "rows": rows}
    place.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    place.with_suffix(".md").write_text(text)
    if len(rows) > FEW:
        draw(rows, picture)
    print(f"{text}\n{len(rows)} of {len(study.recipes)} recipes: {place}.json")


if __name__ == "__main__":
    main()
