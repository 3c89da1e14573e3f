"""Few bits on a sentence encoder: MiniLM-L6 finding news items by their first sentence.

    python -m benchmarks.retrieval.minilm [--rows GLOB] [--queries 60] [--length 64]

The unit is the query; what is compared with float32 is the difference of each query, resampled. The cosine is that of
document vectors before and after, its interval over documents. One thread. Rows that the result file holds are kept.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lessen
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json
from lessen.methods.sites import state_bytes
from lessen.recipe import Recipe

RESULT = Path(__file__).parents[1] / "results" / "retrieval_minilm.json"
CALIBRATION = {"calibration_batches": 4}


def rows() -> dict[str, list[dict[str, Any]]]:
    """Return the steps by row."""
    return {
        "int8 dynamic": [{"linear-int8": {}}],
        "rtn 4": [{"rtn": {"bits": 4}}],
        "rtn 4, tables stay": [{"rtn": {"bits": 4, "table_bits": None}}],
        "int8 static": [{"int8-static": CALIBRATION}],
        "awq 4": [{"awq": {"bits": 4, **CALIBRATION}}],
        "rtn 4, tables 4": [{"rtn": {"bits": 4, "table_bits": 4}}],
        "gptq 4": [{"gptq": {"bits": 4, **CALIBRATION}}],
        "smoothquant + int8 static": [{"smoothquant": CALIBRATION}, {"int8-static": CALIBRATION}],
        "rtn 8": [{"rtn": {"bits": 8}}],
        "bf16": [{"linear-half": {}}],
        "quarot + rtn 4": [{"quarot": {}}, {"rtn": {"bits": 4}}],
        "mixed 4": [{"linear-mixed-bits": {"average": 4.5, **CALIBRATION}}],
        "int8 static mse": [{"int8-static": {"ranges": "mse", **CALIBRATION}}],
    }


def interval(values: np.ndarray) -> list[float]:
    """Return the 95 % interval of a mean by 10,000 bootstrap draws of its units."""
    draws = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    return [round(float(end), 5) for end in np.quantile(values[draws].mean(1), [0.025, 0.975])]


class Judge:
    """The float32 encoder's outcomes and document vectors, and what another's are against them."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.outcomes, self.vectors = self._said(task.reference())

    def _said(self, model: Any) -> tuple[Any, torch.Tensor]:
        kept: list[torch.Tensor] = []
        encode = self.task.encode

        def keeping(model: Any, texts: Any) -> torch.Tensor:
            kept.append(encode(model, texts))
            return kept[-1]

        return self.task.view(encode=keeping).outcomes(model, "test"), kept[0]

    def __call__(self, model: Any) -> dict[str, Any]:
        outcomes, vectors = self._said(model)
        cosine = torch.cosine_similarity(vectors, self.vectors).double().numpy()
        near = [(v @ v.t()).fill_diagonal_(-2).argmax(1) for v in (vectors, self.vectors)]
        row: dict[str, Any] = {
            "cosine": round(float(cosine.mean()), 5),
            "cosine_ci": interval(cosine),
            "same_neighbour": round(float((near[0] == near[1]).double().mean()), 4),
        }
        for name in ("ndcg@10", "recall@1"):
            own, base = (np.asarray(o[name], float) for o in (outcomes, self.outcomes))
            row[name] = round(float(own.mean()), 5)
            row[f"{name} difference"] = [round(float((own - base).mean()), 5), *interval(own - base)]
            row[f"{name} by query"] = [round(float(value), 4) for value in own]
        return row


def table(record: dict[str, Any]) -> None:
    for name, row in record["rows"].items():
        change, *ends = row["ndcg@10 difference"]
        print(
            f"{name:28} {row['bytes'] / 1e6:6.1f} MB  ndcg@10 {row['ndcg@10']:.4f} ({change:+.4f} {ends})  "
            f"cosine {row['cosine']:.4f} {row['cosine_ci']}  same neighbour {row['same_neighbour']:.3f}  "
            f"{row['cpu_s']:.0f} s cpu"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="*", help="glob over row names")
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--length", type=int, default=64)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    task = lessen.get_task({"name": "retrieval-minilm", "queries": asked.queries, "length": asked.length})
    record: dict[str, Any] = (
        json.loads(RESULT.read_text())
        if RESULT.exists()
        else {
            "benchmark": "retrieval_minilm",
            "command": "python -m benchmarks.retrieval.minilm",
            "task": task.describe(),
            "environment": {**environment(1), "transformers": package_version("transformers")},
            "rows": {},
        }
    )
    wanted = {"float32": [], **rows()}
    wanted = {k: v for k, v in wanted.items() if k not in record["rows"] and fnmatch.fnmatch(k, asked.rows)}
    judge = Judge(task) if wanted else None
    for name, steps in wanted.items():
        assert judge is not None
        start, model = time.process_time(), task.reference()
        made = Recipe.parse({"name": name, "steps": steps}).apply(model, task)[0] if steps else model
        taken = time.process_time() - start
        record["rows"][name] = {"steps": steps, "bytes": state_bytes(made), "cpu_s": round(taken, 1), **judge(made)}
        atomic_write(RESULT, dump_json(record))
        table({"rows": {name: record["rows"][name]}})
    table(record)


if __name__ == "__main__":
    main()
