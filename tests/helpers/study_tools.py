"""A study small enough to run many times: a tiny click task, two quick recipes, and one that cannot work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lessen import files

TEXT = """
study: tiny
task: {name: ctr-synthetic, rows: 1500, rows_per_field: 40}
seeds: [0, 1]
margin: {auc: 0.01}
measure: {rounds: 8, peak_memory: false, baselines: false}
recipes:
  - name: int8
    steps: [{emb-rowwise-quant: {bits: 8, min_rows: 10}}]
  - name: hash
    steps: [{emb-hash: {min_rows: 10}}]
"""
IMPOSSIBLE = "  - name: impossible\n    steps: [{emb-rowwise-quant: {min_rows: 100000}}]\n"
CLOCKED = ("latency_ms_p50", "latency_ms_p95", "latency_ratio", "latency_ratio_ci", "throughput_per_s",
           "compress_s", "train_s", "peak_rss_bytes", "peak_rss_growth_bytes")  # fmt: skip


def write(path: Path, text: str = TEXT) -> Path:
    path.write_text(text)
    return path


def settled(out: Path) -> list[dict[str, Any]]:
    """Return the measurements of a study without what a clock or the system's memory decided."""
    records = [json.loads(line) for line in (out / "measurements.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("digest", None)
        for cost in (record["cost"], record["reference"]["cost"]):
            for name in CLOCKED:
                cost.pop(name, None)
        for step in record["steps"]:
            step.pop("seconds", None)
            step.pop("train_seconds", None)
    return records


def temporaries(out: Path) -> list[Path]:
    return list(out.rglob(f"{files.TEMPORARY}*"))
