"""Pruned models against the whole one, unit by unit: MiniLM, SmolLM2 and the CIFAR-10 ViT.

    python -m benchmarks.pruning.frontier --host minilm --text wiki.txt [--rows GLOB]
    python -m benchmarks.pruning.frontier --host smollm2 | cifar | colours

What is resampled is the unit (query, document, picture): 95 % bootstrap intervals of the mean, and of the difference to
the whole model and to the row that `against` names. Nothing is chosen on what is judged. One thread; seconds are of the
processor. Rows that the result file holds are kept, so that a run may be cut short.
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
from lessen.testing.colours import ColourTask

RESULTS = Path(__file__).parents[1] / "results"
SHARES = (0.75, 0.5, 0.25)
Rows = dict[str, list[dict[str, Any]]]


def minilm() -> Rows:
    """Return rows at three quarters of heads and units, and at shares of the multiply-adds, from 128 or 256 texts."""
    few, more = {"calibration_batches": 4}, {"calibration_batches": 8}
    parts = {"heads": 0.75, "units": 0.75}
    refit = [{"retrain": {"by": "blocks", "calibration_batches": 8}}]
    rows: Rows = {
        "mope 75/75": [{"mope": {**parts, **few}}],
        "mope answers 75/75": [{"mope": {**parts, **more, "quality": "answers"}}],
        "mope answers 75/75, refitted": [{"mope": {**parts, **more, "quality": "answers"}}, *refit],
        "magnitude 75/75, refitted": [{"magnitude-pruning": parts}, *refit],
        "magnitude 75/75": [{"magnitude-pruning": parts}],
        "first-order 75/75": [{"first-order-pruning": {**parts, **few}}],
        "random 75/75": [{"random-pruning": parts}],
        "mope free 75/75": [{"mope": {"share": 0.754, **few}}],
    }
    for share in SHARES:
        name = f"{share:.0%}"
        rows |= {
            f"magnitude {name}": [{"magnitude-pruning": {"share": share}}],
            f"random {name}": [{"random-pruning": {"share": share}}],
            f"vtrans {name}": [{"vtrans": {"share": share, "steps": 100}}],
            f"vtrans by teacher {name}": [{"vtrans": {"share": share, "steps": 100, "by": "teacher"}}],
            f"first-order {name}": [{"first-order-pruning": {"share": share, **few}}],
            f"first-order {name}, refitted": [{"first-order-pruning": {"share": share, **few}}, *refit],
            f"mope {name}, refitted": [{"mope": {"share": share, **few}}, *refit],
        }
    rows["first-order 75%, refitted, int8"] = [*rows["first-order 75%, refitted"], {"linear-int8": {}}]
    rows["first-order 75%, refitted, rtn 4"] = [*rows["first-order 75%, refitted"], {"rtn": {"bits": 4}}]
    return rows


def smollm2() -> Rows:
    """Return rows that keep three quarters of the parameters."""
    few = {"of": "parameters", "calibration_batches": 4}
    even = {**few, "uniform": True}
    refit = {"retrain": {"by": "blocks", "calibration_batches": 5}}
    return {
        "first-order even, refitted": [{"first-order-pruning": even}, refit],
        "first-order even, refitted on more": [
            {"first-order-pruning": {**even, "calibration_batches": 12}},
            {"retrain": {"by": "blocks", "calibration_batches": 24}},
        ],
        "first-order even": [{"first-order-pruning": even}],
        "first-order": [{"first-order-pruning": few}],
        "first-order, refitted": [{"first-order-pruning": few}, refit],
        "magnitude": [{"magnitude-pruning": {"of": "parameters"}}],
        "random": [{"random-pruning": {"of": "parameters"}}],
        "first-order even, refitted, rtn 4": [{"first-order-pruning": even}, refit, {"rtn": {"bits": 4}}],
    }


def cifar() -> Rows:
    """Return rows at shares of the multiply-adds: masks alone, rankings, refits, and weights that move."""
    rows: Rows = {}
    for share in (0.75, 0.5, 0.3):  # one head and 16 units a block are 26 %
        name, refit = f"{share:.0%}", [{"retrain": {"by": "blocks", "calibration_batches": 16}}]
        rows |= {
            f"vtrans {name}": [{"vtrans": {"share": share, "steps": 100}}],
            f"magnitude {name}": [{"magnitude-pruning": {"share": share}}],
            f"random {name}": [{"random-pruning": {"share": share}}],
            f"first-order {name}": [{"first-order-pruning": {"share": share}}],
            f"vtrans {name}, refitted": [{"vtrans": {"share": share, "steps": 100}}, *refit],
            f"first-order {name}, refitted": [{"first-order-pruning": {"share": share}}, *refit],
        }
    return rows


def colours() -> Rows:
    """Return rows of a ViT of four blocks that tells four colours, by steps of 8 units: seconds each."""
    rows: Rows = {}
    for share in (0.75, 0.5, 0.4):  # one head and 8 units a block are 38 %
        given = {"share": share, "multiple": 8}
        rows |= {
            f"vtrans {share:.0%}": [{"vtrans": {**given, "steps": 100}}],
            f"magnitude {share:.0%}": [{"magnitude-pruning": given}],
            f"random {share:.0%}": [{"random-pruning": given}],
            f"first-order {share:.0%}": [{"first-order-pruning": given}],
            f"mope {share:.0%}": [{"mope": given}],
            f"mope answers {share:.0%}": [{"mope": {**given, "quality": "answers"}}],
        }
    return rows


def task_of(host: str, text: str | None) -> Any:
    """Return the task of a host. MiniLM searches the paragraphs of two sentences or more of a text."""
    if host == "minilm":
        if text is None:
            raise SystemExit("--host minilm needs --text FILE, such as WikiText-2's test and validation sets in one")
        return lessen.get_task({"name": "retrieval-minilm", "data": text, "queries": 1000, "length": 32})
    if host == "smollm2":
        given = {"documents": 8, "window": 256, "stride": 128, "train_documents": 120, "batch": 4}
        return lessen.get_task({"name": "language-smollm2", **given})
    if host == "colours":
        return ColourTask()
    given = {"test_examples": 1000, "validation_examples": 200, "train_examples": 6000, "batch": 16}
    return lessen.get_task({"name": "image-cifar10", **given})


def units(host: str, task: Any, model: Any) -> dict[str, list[float]]:
    """Return what happened on each unit; of MiniLM queries of both splits that nothing is learned from."""
    if host == "minilm":
        held: dict[tuple[str, ...], torch.Tensor] = {}

        def encode(model: Any, texts: Any) -> torch.Tensor:  # both splits search the same documents
            if tuple(texts) not in held:
                held[tuple(texts)] = task.encode(model, texts)
            return held[tuple(texts)]

        both = [task.view(encode=encode).outcomes(model, split) for split in ("test", "validation")]
        return {name: [float(v) for one in both for v in one[name]] for name in ("recall@1", "ndcg@10")}
    found = task.outcomes(model, "test")
    if host == "smollm2":
        return {name: [round(float(v), 4) for v in found[name]] for name in ("nll", "tokens")}
    return {"accuracy": [float(v) for v in (found["score"].argmax(1) == found["target"])]}


def judged(row: dict[str, list[float]], base: dict[str, list[float]]) -> dict[str, Any]:
    """Return the metric, its interval, and the difference to the whole model with its own."""
    draws = np.random.default_rng(0).integers(0, len(next(iter(row.values()))), (5000, len(next(iter(row.values())))))

    def ends(values: np.ndarray) -> list[float]:
        return [round(float(end), 4) for end in np.quantile(values, [0.025, 0.975])]

    if "nll" in row:
        (nll, tokens), (before, _) = ((np.asarray(one["nll"]), np.asarray(one["tokens"])) for one in (row, base))
        rate, first = (np.exp(v[draws].sum(1) / tokens[draws].sum(1)) for v in (nll, before))
        whole = float(np.exp(nll.sum() / tokens.sum()))
        return {"perplexity": round(whole, 3), "perplexity ci": ends(rate), "rise ci": ends(rate - first),
                "rise": round(whole - float(np.exp(before.sum() / tokens.sum())), 3)}  # fmt: skip
    found: dict[str, Any] = {}
    for name, values in row.items():
        own, other = np.asarray(values), np.asarray(base[name])
        found |= {
            name: round(float(own.mean()), 4), f"{name} ci": ends(own[draws].mean(1)),
            f"{name} lost": [round(float((other - own).mean()), 4), *ends((other - own)[draws].mean(1))],
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", choices=("minilm", "smollm2", "cifar", "colours"), required=True)
    parser.add_argument("--text", help="text whose paragraphs MiniLM searches")
    parser.add_argument("--rows", default="*", help="glob over row names")
    parser.add_argument("--seconds", type=float, default=1e9, help="of the processor, after which no row is begun")
    parser.add_argument("--seeds", type=int, default=3, help="of rows that draw: random and vtrans")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    task, path = task_of(asked.host, asked.text), RESULTS / f"pruning_{asked.host}.json"
    described = {k: v for k, v in task.describe().items() if k != "data"}
    versions = {**environment(1), "transformers": package_version("transformers")}
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {
        "benchmark": f"pruning_{asked.host}", "command": f"python -m benchmarks.pruning.frontier --host {asked.host}",
        "task": described, "environment": versions, "rows": {},
    }  # fmt: skip
    model = task.reference()
    if "whole" not in record["rows"]:
        base = units(asked.host, task, model)
        record["rows"]["whole"] = {**judged(base, base), "units": base, "parameters": _size(model)}
        atomic_write(path, dump_json(record))
    for name, steps in HOSTS[asked.host]().items():
        drawn = name.startswith(("random", "vtrans"))
        for seed in range(asked.seeds if drawn else 1):
            row = f"{name} #{seed}" if drawn else name
            if row in record["rows"] or not fnmatch.fnmatch(name, asked.rows) or time.process_time() > asked.seconds:
                continue
            start = time.process_time()
            made, ledger = Recipe.parse({"name": name, "steps": steps}).apply(model, task, seed=seed)
            taken, found = time.process_time() - start, units(asked.host, task, made)
            findings = ledger[0].findings
            record["rows"][row] = {
                "steps": steps, "cpu_s": round(taken, 1), "parameters": _size(made), "bytes": state_bytes(made),
                "share": findings.get("share"),
                "kept": findings.get("kept"), "sparsity": findings.get("sparsity"),
                **judged(found, record["rows"]["whole"]["units"]), "units": found,
            }  # fmt: skip
            if path.exists():  # rows that another run wrote meanwhile
                record["rows"] = {**json.loads(path.read_text())["rows"], **record["rows"]}
            atomic_write(path, dump_json(record))
            shown = {k: v for k, v in record["rows"][row].items() if k not in ("units", "kept", "steps")}
            print(row, json.dumps(shown), flush=True)


HOSTS = {"minilm": minilm, "smollm2": smollm2, "cifar": cifar, "colours": colours}


def _size(model: Any) -> int:
    return sum(tensor.numel() for tensor in model.parameters())


if __name__ == "__main__":
    main()
