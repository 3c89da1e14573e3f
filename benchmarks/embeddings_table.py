"""Table of a study of embedding methods, finished or not: share of the tables' bytes, AUC difference, paired interval.

    python benchmarks/embeddings_table.py OUT [--results benchmarks/results/embeddings_movielens]

Reads what `lessen run studies/embeddings-movielens.yaml --out OUT` has written so far (recipes with all seeds only);
writes NAME.json (each seed) and NAME.md. Intervals resample test examples and seeds, paired with the reference.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file

from lessen import artifact
from lessen.frontier.verdict import PairedBootstrap
from lessen.metrics import AUC
from lessen.stored.embedding import StoredEmbedding
from lessen.study.schema import Study
from lessen.tasks import get_task

RESULTS = Path(__file__).parent / "results" / "embeddings_movielens"


def rows_of(out: Path) -> list[dict[str, Any]]:
    study = Study.load(out / "study.yaml")
    torch.set_num_threads(1)
    task = get_task(study.task.describe())
    base = task.build()
    tables = sum(m.weight.numel() * 4 for m in base.modules() if isinstance(m, (torch.nn.Embedding, StoredEmbedding)))
    reference, targets = {}, None
    for seed in study.seeds:
        scores, targets = task.predictions(artifact.load(out / "reference" / str(seed), model=base))
        reference[seed] = scores
    bootstrap = PairedBootstrap(targets)
    known = {seed: bootstrap.values(AUC, scores) for seed, scores in reference.items()}
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in (out / "compressed").glob("*.json"):
        record = json.loads(path.read_text())
        if record.get("quality"):
            found.setdefault(record["recipe"], {})[record["seed"]] = {**record, "file": path.stem}
    rows = []
    for name, seeds in found.items():
        if set(seeds) != set(study.seeds):
            continue
        compact = {s: bootstrap.values(AUC, _scores(out, record["file"])) for s, record in seeds.items()}
        first = seeds[study.seeds[0]]
        before, after = first["steps"][0]["bytes_before"], first["steps"][-1]["bytes_after"]
        difference = bootstrap.difference(AUC, known, compact)
        rows.append({
            "recipe": name, "share": (tables - before + after) / tables, "stored_bytes": first["cost"]["stored_bytes"],
            "auc_difference": difference.value, "low": difference.low, "high": difference.high,
            "per_seed": list(difference.per_seed),
            "train_seconds": sum(r["cost"]["train_s"] for r in seeds.values()) / len(seeds),
            "steps": [{step["method"]: step["knobs"]} for step in first["steps"]],
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["share"])


def _scores(out: Path, name: str) -> Any:
    return next(iter(load_file(out / "predictions" / f"{name}.safetensors").values()))


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| recipe | share of table bytes | AUC difference | 95 % interval | each seed | training, s |",
             "|---|---:|---:|---|---|---:|"]  # fmt: skip
    for row in rows:
        seeds = ", ".join(f"{value:+.4f}" for value in row["per_seed"])
        lines.append(
            f"| {row['recipe']} | {100 * row['share']:.1f} % | {row['auc_difference']:+.4f} "
            f"| {row['low']:+.4f} to {row['high']:+.4f} | {seeds} | {row['train_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = rows_of(args.out)
    text = markdown(rows)
    args.results.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    args.results.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
