"""Torch-Pruning (PyPI, 1.6.1) on the same models, data and sizes: what its groups and importances leave.

    PYTHONPATH=WHERE_IT_IS python -m benchmarks.pruning.torch_pruning_peer --host smollm2 | minilm | cifar [--rows GLOB]

units *   the same number of units from every block by its importances: 880 of SmolLM2, elsewhere half of them
ours *    our first-order ranking with the same units of every block, or with the same multiply-adds wherever parts
          are missed least, and refitted by blocks

The whole model's row is taken from the file of `frontier`, which runs first; SmolLM2's rows of ours are there too. The
peer's LLM example (heads, units and width at one ratio) is not here: on a tiny Llama its search for groups did not end.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import importlib
import itertools
import json
import time
from typing import Any

import torch
from torch import nn

from benchmarks.pruning.frontier import RESULTS, judged, task_of, units
from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.measure.record import count_macs
from lessen.pruning.layout import read_layout
from lessen.recipe import Recipe

BATCHES = 4


def slopes(model: Any, task: Any) -> None:
    """Leave the gradients of the mean loss of the train batches that our first-order rows look at."""
    model.zero_grad()
    for batch in itertools.islice(task.batches("train"), BATCHES):
        task.loss(model, batch).backward()


def pruned_units(tp: Any, model: Any, task: Any, kind: str, kept: float) -> None:
    """Take the same share of units from every block."""
    feeds = [layer.block.feed_forward for layer in read_layout(model).layers]
    ups = [(feed.gate or feed.up).module for feed in feeds if feed is not None]
    importance = {"magnitude": tp.importance.GroupMagnitudeImportance, "taylor": tp.importance.GroupTaylorImportance}
    if kind == "taylor":
        slopes(model, task)
    follow = [feed.up.module for feed in feeds if feed is not None]
    inside = {id(layer) for layer in (*ups, *follow)}
    kinds = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    ignored = [m for m in model.modules() if isinstance(m, kinds) and id(m) not in inside]
    tp.pruner.BasePruner(
        model, _example(task), importance=importance[kind](), pruning_ratio=1 - kept, ignored_layers=ignored,
        round_to=16, forward_fn=_forward,
    ).step()  # fmt: skip


def _forward(model: Any, given: Any) -> torch.Tensor:
    """Return one tensor: the cache of keys and values is nothing that groups can be traced through."""
    if isinstance(given, torch.Tensor):
        return model(given)  # type: ignore[no-any-return]
    answer = model(**given, use_cache=False) if hasattr(model, "lm_head") else model(**given)
    found: torch.Tensor = answer[0]
    return found


def _example(task: Any) -> Any:
    given = task.inputs(task.example_batch())
    return given[:1] if isinstance(given, torch.Tensor) else {name: value[:1] for name, value in given.items()}


def ours(task: Any, model: Any, kept: float, share: float, row: str) -> Any:
    """Return our model of the same units in every block, or of the same multiply-adds."""
    size = {"units": kept} if row == "ours, same units" else {"share": share}
    steps: list[Any] = [{"first-order-pruning": {**size, "calibration_batches": BATCHES}}]
    if row.endswith("refitted"):
        steps.append({"retrain": {"by": "blocks", "calibration_batches": 2 * BATCHES}})
    return Recipe.parse({"name": row, "steps": steps}).apply(model, task)[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", choices=("smollm2", "minilm", "cifar"), required=True)
    parser.add_argument("--text")
    parser.add_argument("--rows", default="*")
    asked = parser.parse_args()
    tp = importlib.import_module("torch_pruning")
    torch.set_num_threads(1)
    task, path = task_of(asked.host, asked.text), RESULTS / f"pruning_peer_{asked.host}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {
        "benchmark": f"pruning_peer_{asked.host}", "peer": f"torch-pruning {tp.__version__}",
        "command": f"python -m benchmarks.pruning.torch_pruning_peer --host {asked.host}",
        "environment": environment(1), "rows": {},
    }  # fmt: skip
    kept = 880 / 1536 if asked.host == "smollm2" else 0.5
    rows = {f"units {kind}": (kind, kept) for kind in ("magnitude", "taylor")}
    if asked.host != "smollm2":
        names = ("ours, same units", "ours, same multiply-adds", "ours, same multiply-adds, refitted")
        rows |= dict.fromkeys(names, ("ours", kept))
    base: dict[str, list[float]] | None = None
    model = task.reference()
    for name, (kind, amount) in rows.items():
        if name in record["rows"] or not fnmatch.fnmatch(name, asked.rows):
            continue
        base = base or json.loads((RESULTS / f"pruning_{asked.host}.json").read_text())["rows"]["whole"]["units"]
        made, start = copy.deepcopy(model), time.process_time()
        if kind == "ours":
            made = ours(task, model, kept, record["rows"]["units taylor"]["share"], name)
        else:
            pruned_units(tp, made, task, kind, amount)
        found = units(asked.host, task, made.eval())
        size = sum(p.numel() for p in made.parameters())
        left, whole = (count_macs(task, one) for one in (made, model))
        row = {"cpu_s": round(time.process_time() - start, 1), "parameters": size,
               "share": left / whole if left and whole else None, **judged(found, base)}  # fmt: skip
        record["rows"][name] = row
        atomic_write(path, dump_json(record))
        print(name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
