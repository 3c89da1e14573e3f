"""What scales, rotations, mixed widths and few-bit tables are worth on a language model, beside rounding to nearest.

    python -m benchmarks.language.scaled [--rows GLOB] [--documents 8]

Rows, documents, calibration and figures are those of `benchmarks.language.fewbits`: SmolLM2-135M-Instruct, float32,
news text, one thread; `part` rows round blocks 10 to 15 of 30, `whole` rows all of them, in groups of 64, and the
embedding, which is also the head, at 8 bits. `tables` rows round that alone. Rows of the result file are kept.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lessen
from benchmarks.language.fewbits import PART, Judge, apart, densely, mean, perplexity
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json
from lessen.methods.sites import module_bytes, state_bytes
from lessen.recipe import Recipe
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.stored.linears.rotated import RotatedInput
from lessen.stored.linears.scaled_input import ScaledInput

RESULT = Path(__file__).parents[1] / "results" / "language_scaled.json"
CALIBRATION = {"calibration_batches": 6}


def few(method: str, bits: int, **knobs: Any) -> dict[str, Any]:
    table = {"table_bits": None} if "only" in knobs else {}
    return {method: {"bits": bits, "group": 64, **table, **knobs}}


def mixed(average: float, **knobs: Any) -> dict[str, Any]:
    return {"linear-mixed-bits": {"average": average, "group": 64, **knobs}}


def rows() -> dict[str, list[dict[str, Any]]]:
    """Return the steps by row, in the order in which they are made."""
    found: dict[str, list[dict[str, Any]]] = {}
    for bits in (3, 4):
        part = {"only": PART, "table_bits": None}
        found[f"part {bits} mixed"] = [mixed(bits + 0.5, calibration_batches=3, **part)]
        found[f"part {bits} mixed by lot"] = [mixed(bits + 0.5, allocation="random", **part)]
        found[f"part {bits} rtn"] = [few("rtn", bits, only=PART)]
        found[f"part {bits} rtn search"] = [few("rtn", bits, only=PART, ranges="search")]
        found[f"part {bits} awq"] = [few("awq", bits, only=PART, **CALIBRATION)]
        found[f"part {bits} quarot+rtn"] = [{"quarot": {}}, few("rtn", bits, only=PART)]
        found[f"part {bits} quarot of heads and hidden+rtn"] = [
            {"quarot": {"residual": False}},
            few("rtn", bits, only=PART),
        ]
        found[f"part {bits} gptq"] = [few("gptq", bits, only=PART, **CALIBRATION)]
        found[f"part {bits} quarot+gptq"] = [{"quarot": {}}, few("gptq", bits, only=PART, **CALIBRATION)]
    for bits in (4, 3):
        found[f"whole {bits} rtn"] = [few("rtn", bits)]
        found[f"whole {bits} quarot+rtn"] = [{"quarot": {}}, few("rtn", bits)]
        found[f"whole {bits} mixed"] = [mixed(bits + 0.5, calibration_batches=3)]
        found[f"whole {bits} mixed by lot"] = [mixed(bits + 0.5, allocation="random")]
        found[f"whole {bits} awq"] = [few("awq", bits, grid=10, **CALIBRATION)]
    for bits in (8, 6, 5, 4, 3):
        found[f"tables {bits}"] = [few("rtn", 4, only="model.embed_tokens", table_bits=bits)]
    return found


def bits_of(model: nn.Module) -> dict[str, float]:
    """Return the bytes of compact layers with what stands in front of them, and their bits for each weight."""
    compact = [m for m in model.modules() if isinstance(m, GroupQuantizedLinear)]
    front = [m for m in model.modules() if isinstance(m, (ScaledInput, RotatedInput))]
    beside = sum(b.numel() * b.element_size() for m in front for b in m.buffers(recurse=False))
    taken = sum(module_bytes(module) for module in compact) + beside
    weights = sum(module.in_features * module.out_features for module in compact)
    return {
        "layers": len(compact), "bytes": taken, "bits_per_weight": round(8 * taken / weights, 4),
        "state_bytes": state_bytes(model),
    }  # fmt: skip


def made(original: nn.Module, task: Any, judge: Judge, steps: list[dict[str, Any]]) -> dict[str, Any]:
    start, cpu = time.perf_counter(), time.process_time()
    model, ledger = Recipe.parse({"name": "row", "steps": steps}).apply(original, task, seed=0)
    seconds = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    findings = {
        step.method: {k: step.findings[k] for k in ("rotated", "allocation", "sensitivity") if k in step.findings}
        for step in ledger
    }
    return {
        "steps": steps,
        **bits_of(model),
        **seconds,
        "findings": findings,
        "documents": judge(densely(model, GroupQuantizedLinear)),
    }


def table(record: dict[str, Any]) -> None:
    for name, row in record["rows"].items():
        against = record["rows"].get(" ".join(name.split(" ")[:2]) + " rtn")
        kl = apart(row, against, "kl") if against is not None and against is not row else None
        print(
            f"{name:28} {row['bits_per_weight'] or 32:7.3f} bits  perplexity {perplexity(row):9.2f}  "
            f"KL {mean(row, 'kl'):.4f}  flips {100 * mean(row, 'flips'):5.1f} %  {row['cpu_s']:6.0f} s cpu"
            + ("" if kl is None else f"  KL less rtn's {kl[0]:+.4f} [{kl[1]:+.4f}, {kl[2]:+.4f}]")
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="*", help="glob over row names")
    parser.add_argument("--documents", type=int, default=8)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    task = lessen.get_task({"name": "language-smollm2", "window": 192, "stride": 96})
    judged = lessen.get_task({"name": "language-smollm2", "documents": asked.documents})
    record: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {
        "benchmark": "language_scaled", "command": "python -m benchmarks.language.scaled", "rows": {},
        "environment": {**environment(1), "transformers": package_version("transformers")},
        "judged": judged.describe(), "calibrated": task.describe(),
    }  # fmt: skip
    wanted = [name for name in rows() if name not in record["rows"] and fnmatch.fnmatch(name, asked.rows)]
    original = task.reference()
    judge = Judge(judged, original) if wanted else None
    for name in wanted:
        assert judge is not None
        record["rows"][name] = made(original, task, judge, rows()[name])
        atomic_write(RESULT, dump_json(record))
        table({"rows": {name: record["rows"][name]}})
    table(record)


if __name__ == "__main__":
    main()
