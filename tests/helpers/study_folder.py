"""Writes a study folder like those of `lessen run`: ten recipes, three seeds, predictions, noise, baselines, notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lessen.frontier.records import file_name
from lessen.metrics import AUC, LOGLOSS

FINGERPRINT = "9c1e" * 16
STORED = 352_640
# recipe: method, family, claims, share of bytes kept, score noise, latency ratio, multiply-adds kept
RECIPES: dict[str, tuple[str, str, list[str], float, float, float, float]] = {
    "fp16 tables": ("emb-half", "embeddings", ["bytes"], 0.517, 0.002, 1.01, 1.0),
    "int8 rows": ("emb-rowwise-quant", "embeddings", ["bytes"], 0.331, 0.01, 1.07, 1.0),
    "int4 rows": ("emb-rowwise-quant", "embeddings", ["bytes"], 0.212, 0.09, 1.12, 1.0),
    "int2 rows, greedy": ("emb-rowwise-quant", "embeddings", ["bytes"], 0.153, 0.55, 1.14, 1.0),
    "hash 4x": ("emb-hash", "embeddings", ["bytes"], 0.266, 0.42, 0.97, 1.0),
    "hash 16x": ("emb-hash", "embeddings", ["bytes"], 0.084, 0.9, 0.93, 1.0),
    "quotient-remainder": ("emb-qr", "embeddings", ["bytes"], 0.121, 0.36, 1.09, 1.0),
    "low-rank MLP": ("lowrank-ctr", "weights", ["bytes", "macs", "latency"], 0.902, 0.13, 0.88, 0.55),
    "prune rows + int8": ("row-pruning", "embeddings", ["bytes"], 0.148, 0.16, 1.05, 1.0),
    "int8 linear": ("int8-linear", "weights", ["bytes", "latency"], 0.871, 0.05, 1.02, 1.0),
}


def prediction_path(folder: Path, recipe: str, seed: int) -> Path:
    """Return where earlier versions kept the scores of a model; such folders are still read."""
    return folder / "predictions" / f"{file_name(recipe)}-{seed}.safetensors"


def write_study(
    folder: Path,
    *,
    seeds: int = 3,
    examples: int = 4000,
    margin: float = 0.004,
    study: str = "demo",
    recipes: dict[str, Any] | None = None,
    fail: str | None = None,
    signal: float = 1.15,
) -> Path:
    """Write a whole study into `folder`; `fail` names a recipe whose runs all failed."""
    generator = np.random.default_rng(7)
    targets = (generator.random(examples) < 0.47).astype(np.float32)
    scores = {}
    for seed in range(seeds):
        base = (targets - 0.5) * signal + generator.normal(0, 1.0, examples)
        scores[seed] = (base * 0.9 + generator.normal(0, 0.05, examples)).astype(np.float32)
    predictions = folder / "predictions"
    predictions.mkdir(parents=True)
    save_file({"targets": targets}, predictions / "targets.safetensors")
    lines = []
    for seed, values in scores.items():
        save_file({"scores": values}, prediction_path(folder, "reference", seed))
    for name, row in (RECIPES if recipes is None else recipes).items():
        for seed, before in scores.items():
            after = (before + generator.normal(0, row[4], examples)).astype(np.float32)
            record = _record(study, name, row, seed, before, after, targets)
            if name == fail:
                record.update(status="failed", error="RuntimeError: out of memory at step 1", quality={}, cost={})
            else:
                save_file({"scores": after}, prediction_path(folder, name, seed))
            lines.append(json.dumps(record))
    (folder / "measurements.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "study.yaml").write_text(f"study: {study}\nmargin: {margin}\nbudget: stored_bytes<=0.25x, auc>=-0.004\n")
    _extras(folder)
    return folder


def _extras(folder: Path) -> None:
    noise = {"latency_ratio": 1.003, "latency_ratio_ci": [0.982, 1.021], "quality": {"auc": [-0.0011, 0.0013]}}
    (folder / "noise.json").write_text(json.dumps(noise))
    baselines = {
        "logistic regression": {"auc": 0.7880, "auc_ci": [0.7791, 0.7969], "logloss": 0.5576},
        "gradient boosting": {"auc": 0.7851, "auc_ci": [0.7760, 0.7941], "logloss": 0.5606},
    }
    (folder / "baselines.json").write_text(json.dumps(baselines))
    notes = ["0.0 % of test users are unseen in training (warm split)", "Latency on CPU only; no GPU was used"]
    (folder / "notes.json").write_text(json.dumps(notes))


def _record(
    study: str, name: str, row: Any, seed: int, before: np.ndarray, after: np.ndarray, targets: np.ndarray
) -> dict[str, Any]:
    method, family, frees, share, _, ratio, macs = row
    step = {
        "method": method,
        "family": family,
        "frees": frees,
        "knobs": {"bits": 8, "range": "plain"},
        "bytes_before": STORED,
        "bytes_after": int(STORED * share),
        "seconds": 0.4 + share,
        "train_seconds": 3.2 if "hash" in method else 0.0,
        "findings": {"tables": 10},
    }
    return {
        "study": study,
        "task": {"name": "ctr", "data": "ml-100k", "split": "warm"},
        "recipe": name,
        "recipe_hash": f"{abs(hash_of(name)):012x}"[:12],
        "seed": seed,
        "steps": [step],
        "quality": _quality(after, targets),
        "quality_ci": {},
        "cost": _cost(share, ratio + 0.004 * seed, macs),
        "reference": {"quality": _quality(before, targets), "quality_ci": {}, "cost": _cost(1.0, None, 1.0)},
        "env": {
            "python": "3.11.9",
            "processor": "Xeon, 2 cores",
            "threads": 1,
            "packages": {"torch": "2.13.0"},
            "memory_bytes": 8_000_000_000,
        },
        "data_fingerprint": FINGERPRINT,
        "status": "ok",
        "error": None,
    }


def hash_of(name: str) -> int:
    """Return a number that depends on the name alone, in every process."""
    return int.from_bytes(name.encode()[:8], "big") % (1 << 47)


def _quality(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    return {"auc": AUC(scores, targets), "logloss": LOGLOSS(scores, targets)}


def _cost(share: float, ratio: float | None, macs: float) -> dict[str, Any]:
    milliseconds = 1.42 * (ratio or 1.0)
    return {
        "stored_bytes": int(STORED * share),
        "resident_bytes": int(STORED * share * 1.02),
        "params": int(88_160 * share),
        "macs": int(61_000 * macs),
        "latency_ms_p50": milliseconds,
        "latency_ms_p95": milliseconds * 1.3,
        "latency_ratio": ratio,
        "latency_ratio_ci": None if ratio is None else [ratio - 0.02, ratio + 0.02],
        "throughput_per_s": 256 / milliseconds * 1000,
        "peak_rss_bytes": 190_000_000,
        "compress_s": 0.6,
        "train_s": 0.0,
    }
