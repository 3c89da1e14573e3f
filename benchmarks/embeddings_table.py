"""Frontier of embedding methods: share of the tables' bytes, AUC difference with paired interval, training time.

    python benchmarks/embeddings_table.py studies/embeddings-movielens.yaml OUT [--seconds 200] [--only "10 %"]

Compresses what OUT lacks of the study's (recipe, seed) pairs, seed by seed of each recipe, until the seconds are over;
call it again to go on. Then writes NAME.json (each seed), NAME.md and NAME.svg from the recipes with all seeds done.
Intervals resample test examples and seeds, paired with the reference. `lessen run` measures the same recipes with
timings; this script leaves those out and can be cut into pieces.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file

from lessen import artifact
from lessen.frontier.verdict import PairedBootstrap
from lessen.metrics import AUC
from lessen.recipe import Recipe
from lessen.stored.embedding import StoredEmbedding
from lessen.study.folder import StudyFolder, read_json
from lessen.study.jobs import Failure, Job, compress_one, known_compressed, known_reference, source_of, train_reference
from lessen.study.schema import Study
from lessen.task import Task

RESULTS = Path(__file__).parent / "results"
RESAMPLES, INTERVAL_RESAMPLES = 100, 200


def work(study: Study, folder: StudyFolder, only: str, seconds: float) -> None:
    """Do what is left, until the time is over."""
    end = time.monotonic() + seconds

    def job(recipe: Recipe, seed: int) -> Job:
        return Job(source_of(study.task), folder.root.resolve(), recipe, seed, study.threads, RESAMPLES)

    for seed in study.seeds:
        if time.monotonic() < end and known_reference(folder, seed) is None:
            made = train_reference(job(Recipe([]), seed))
            if isinstance(made, Failure):
                raise SystemExit(f"the reference of seed {seed}: {made.message}")
    for recipe, seed in study.runs():
        if time.monotonic() > end or not re.search(only, recipe.name) or known_reference(folder, seed) is None:
            continue
        refused = read_json(refusal(folder, recipe.name)) or {}
        if refused.get("hash") == recipe.hash or known_compressed(folder, recipe, seed) is not None:
            continue
        made = compress_one(job(recipe, seed))
        if isinstance(made, Failure):
            folder.write_json(refusal(folder, recipe.name), {"hash": recipe.hash, "message": made.message})
        print(
            f"{recipe.name}, seed {seed}: {made.message if isinstance(made, Failure) else made['quality']}", flush=True
        )


def refusal(folder: StudyFolder, recipe: str) -> Path:
    return folder.root / "refused" / folder.compressed_file(recipe, 0).name


def rows_of(study: Study, folder: StudyFolder) -> list[dict[str, Any]]:
    """Return one row for each recipe that is done for all seeds, or refused; largest share first."""
    base = study.task.build()
    tables = sum(m.weight.numel() * 4 for m in base.modules() if isinstance(m, (torch.nn.Embedding, StoredEmbedding)))
    reference, targets = references(study.task, folder, study.seeds)
    bootstrap = PairedBootstrap(targets, INTERVAL_RESAMPLES)
    known = {seed: bootstrap.values(AUC, scores) for seed, scores in reference.items()}
    rows = []
    for recipe in study.recipes:
        composed = len(recipe.steps) > 1
        refused = read_json(refusal(folder, recipe.name))
        if refused is not None and refused["hash"] == recipe.hash:
            rows.append({"recipe": recipe.name, "composed": composed, "refused": refused["message"]})
            continue
        seeds = {seed: known_compressed(folder, recipe, seed) for seed in study.seeds}
        if not all(seeds.values()):
            continue
        rows.append(
            {"recipe": recipe.name, "composed": composed, **row_of(folder, recipe, seeds, tables, bootstrap, known)}
        )
    return sorted(rows, key=lambda row: -row.get("share", 0.0))


def references(task: Task, folder: StudyFolder, seeds: Any) -> tuple[dict[int, Any], Any]:
    base, found, targets = task.build(), {}, None
    for seed in seeds:
        found[seed], targets = task.predictions(artifact.load(folder.reference(seed), model=base))
    return found, targets


def row_of(
    folder: StudyFolder, recipe: Recipe, seeds: dict[int, Any], tables: int, bootstrap: PairedBootstrap, known: Any
) -> dict[str, Any]:
    scores = {s: _scores(folder.root, folder.compressed_file(recipe.name, s).stem) for s in seeds}
    first = next(iter(seeds.values()))
    before, after = first["steps"][0]["bytes_before"], first["steps"][-1]["bytes_after"]
    difference = bootstrap.difference(AUC, known, {s: bootstrap.values(AUC, found) for s, found in scores.items()})
    return {
        "share": (tables - before + after) / tables, "stored_bytes": first["cost"]["stored_bytes"],
        "auc_difference": difference.value, "low": difference.low, "high": difference.high,
        "per_seed": list(difference.per_seed),
        "train_seconds": sum(record["cost"]["train_s"] for record in seeds.values()) / len(seeds),
        "steps": [{step["method"]: step["knobs"]} for step in first["steps"]],
    }  # fmt: skip


def _scores(out: Path, name: str) -> Any:
    return next(iter(load_file(out / "predictions" / f"{name}.safetensors").values()))


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| recipe | share of table bytes | AUC difference | 95 % interval | each seed | training, s |",
             "|---|---:|---:|---|---|---:|"]  # fmt: skip
    for row in rows:
        if "refused" in row:
            continue
        seeds = ", ".join(f"{value:+.4f}" for value in row["per_seed"])
        lines.append(
            f"| {row['recipe']} | {100 * row['share']:.2f} % | {row['auc_difference']:+.4f} "
            f"| {row['low']:+.4f} to {row['high']:+.4f} | {seeds} | {row['train_seconds']:.0f} |"
        )
    refused = [row for row in rows if "refused" in row]
    if refused:
        lines += ["", "Refused:", "", *(f"- {row['recipe']}: {row['refused']}" for row in refused)]
    return "\n".join(lines) + "\n"


def drawing(rows: list[dict[str, Any]]) -> str:
    """Return the frontier as SVG: share of the bytes (logarithmic) against the AUC difference, composed ones hollow."""
    done = [row for row in rows if "share" in row]
    lowest = min([*(max(row["auc_difference"], -0.1) for row in done), -0.01])
    highest = max([*(row["auc_difference"] for row in done), 0.002])
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 560" font-family="sans-serif" font-size="11">',
             '<rect width="900" height="560" fill="white"/>']  # fmt: skip

    def place(share: float, difference: float) -> tuple[float, float]:
        x = 70 + 700 * (math.log10(max(share, 1e-3)) + 3) / 3
        return x, 30 + 470 * (highest - max(difference, lowest)) / (highest - lowest)

    for share in (1.0, 0.5, 0.2, 0.1, 0.05, 0.01, 0.001):
        x, _ = place(share, 0)
        parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="30" y2="500" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.0f}" y="518" text-anchor="middle">{100 * share:g} %</text>')
    for step in range(6):
        value = highest + (lowest - highest) * step / 5
        _, y = place(1, value)
        parts.append(f'<text x="62" y="{y + 4:.0f}" text-anchor="end">{value:+.3f}</text>')
    _, zero = place(1, 0)
    parts.append(f'<line x1="70" x2="770" y1="{zero:.1f}" y2="{zero:.1f}" stroke="#888"/>')
    best = -math.inf
    for row in sorted(done, key=lambda row: row["share"]):
        x, y = place(row["share"], row["auc_difference"])
        leads, best = row["auc_difference"] > best, max(best, row["auc_difference"])
        colour = "#1f6f4a" if leads else "#9a9a9a"
        fill = "white" if row["composed"] else colour
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}"><title>{row["recipe"]}: '
                     f'{100 * row["share"]:.2f} %, {row["auc_difference"]:+.4f}</title></circle>')  # fmt: skip
        if leads:
            parts.append(f'<text x="{x + 6:.1f}" y="{y - 5:.1f}" fill="{colour}">{row["recipe"]}</text>')
    legend = (
        "share of the bytes of all tables; height: AUC difference from the full tables, cut at -0.1; "
        "hollow: composed; green: nothing smaller is better"
    )
    parts.append(f'<text x="420" y="545" text-anchor="middle">{legend}</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--only", default="", help="regular expression of recipe names")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study, folder = Study.load(args.study), StudyFolder(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    work(study, folder, args.only, args.seconds)
    if any(known_reference(folder, seed) is None for seed in study.seeds):
        raise SystemExit("not all references are trained yet; call it again")
    rows = rows_of(study, folder)
    text = markdown(rows)
    place = RESULTS / study.name.replace("-", "_")
    place.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    place.with_suffix(".md").write_text(text)
    place.with_suffix(".svg").write_text(drawing(rows))
    print(text)


if __name__ == "__main__":
    main()
