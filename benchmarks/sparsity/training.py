"""Training towards N:M against one shot, on three networks: what each pattern and method leaves of the quality.

    python -m benchmarks.sparsity.training [--seconds 300]     # writes benchmarks/results/sparsity_training.json

A ViT and a convolutional network on drawn shapes of low contrast (accuracy on 4000 pictures), and the perceptron of a
DeepFM on planted clicks (AUC on 20000 rows). Each seed draws the start and the order of the data. The dense network is
trained first; `one-shot` removes weights from it, `one-shot trained` goes on under fixed masks, and all others train on
from it for as many epochs, by the same settings, from the same cosine. `dense trained` trains on without removing
anything: what the epochs alone give. `int8` is the same network with its kept values rounded.

Finished runs are kept, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.distil.networks import Grey, SmallCnn
from benchmarks.distil.results import paired, write
from lessen.data.cache import cache_folder
from lessen.method import Method
from lessen.methods.weights.magnitude_sparsity import MagnitudeSparsity
from lessen.methods.weights.nm_progressive import NMProgressive
from lessen.methods.weights.sr_ste import SRSTE
from lessen.recipe import Recipe
from lessen.stored.linears.sparse_matrix import SparseMatrix
from lessen.task import Task
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask, shapes
from lessen.train.settings import FitSettings

RESULT = Path("benchmarks/results/sparsity_training.json")
SEEDS = range(3)
DENSE, EPOCHS = 20, 8
SETTINGS = FitSettings(
    epochs=EPOCHS,
    learning_rate=2e-3,
    optimizer="adamw",
    weight_decay=0.01,
    schedule="cosine",
    patience=None,
    keep="last",
)
PATTERNS = ("1:16", "2:4")


def methods(pattern: str) -> dict[str, Method]:
    """Return the methods by name; all at 1:16, one of each kind elsewhere."""
    common: dict[str, Any] = {"pattern": pattern, "min_weights": 512}
    found: dict[str, Method] = {
        "one-shot": MagnitudeSparsity(**common),
        "one-shot trained": MagnitudeSparsity(**common, fine_tune_epochs=EPOCHS),
        "sr-ste": SRSTE(**common),
        "exponential": NMProgressive(**common, schedule="exponential"),
        "exponential, half strict": NMProgressive(**common, schedule="exponential", fine=0.5),
    }
    if pattern == "1:16":
        found["linear"] = NMProgressive(**common, schedule="linear")
        found["exponential straight"] = NMProgressive(**common, straight_through=True)
        found["stepwise"] = NMProgressive(**common, schedule="stepwise")
        found["geometric"] = NMProgressive(**common, schedule="geometric")
    return found


def pictures(make: Callable[[], nn.Module]) -> tuple[Task, Callable[[nn.Module], float]]:
    task = ShapesTask(ShapesOptions(style="faded", examples=1000, seed=1)).view(settings=SETTINGS, build=make)
    given, kinds = shapes(4000, "faded", 10_007)

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model.eval()(given).argmax(dim=1) == kinds).float().mean())

    return task, accuracy


def clicks() -> tuple[Task, Callable[[nn.Module], float]]:
    task = SyntheticClicks(SyntheticOptions(rows=40_000, fields=8, rows_per_field=60, dim=8, strength=1.5))
    task = task.view(settings=SETTINGS)
    return task, lambda model: task.score(model, "test")


HOSTS: dict[str, Callable[[], tuple[Task, Callable[[nn.Module], float]]]] = {
    "vit": lambda: pictures(lambda: Grey(width=64, depth=3)), "cnn": lambda: pictures(lambda: SmallCnn(16)),
    "clicks": clicks,
}  # fmt: skip


def rounded(model: nn.Module) -> nn.Module:
    """Return a copy whose sparse layers hold int8 values."""
    model = copy.deepcopy(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, SparseMatrix):
            whole = slice(0, module.rows)
            made = SparseMatrix.of(module.dequantise(), module.mask(whole), "int8", module.n, module.m)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, made)
    return model


def start(host: str, seed: int, task: Task) -> nn.Module:
    """Return the trained dense network, kept in the cache folder."""
    torch.manual_seed(seed)
    dense = task.build()
    path = cache_folder() / "benchmarks" / f"sparsity-{host}-{seed}-{DENSE}.safetensors"
    if path.exists():
        dense.load_state_dict(load_file(path))
        return dense.eval()
    with torch.random.fork_rng():
        task.train(dense, seed=seed, settings=replace(SETTINGS, epochs=DENSE))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dense.state_dict(), path)
    return dense


def runs(host: str, seed: int, done: dict[str, Any], late: Callable[[], bool]) -> None:
    """Fill in what a host and a seed lack."""
    task, quality = HOSTS[host]()
    wanted = {"dense": None, "dense trained": None} | {
        f"{pattern} {name}": method for pattern in PATTERNS for name, method in methods(pattern).items()
    }
    if not set(wanted) - set(done) or late():
        return
    dense = start(host, seed, task)
    done["dense"] = quality(dense)
    for name, method in wanted.items():
        if name in done or late():
            continue
        if method is None:
            again = copy.deepcopy(dense)
            with torch.random.fork_rng():
                task.train(again, seed=seed + 100)
            done[name] = quality(again)
            continue
        made, records = Recipe([method]).apply(dense, task, seed=seed + 100)
        done[name] = quality(made)
        done[f"{name} int8"] = quality(rounded(made))
        done[f"{name} density"] = records[0].findings["density"]["of all weights"]


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Return means and paired differences to SR-STE and to one-shot at the same pattern, where all seeds are done."""
    found: dict[str, Any] = {}
    for host, by_seed in record.items():
        complete = [run for run in by_seed.values() if "1:16 exponential, half strict" in run]
        if len(complete) < len(SEEDS):
            continue
        names = [name for name in complete[0] if not name.endswith("density") and all(name in r for r in complete)]
        found[host] = {name: paired([r[name] for r in complete], [r["dense"] for r in complete]) for name in names}
        for pattern in PATTERNS:
            for name in (each for each in methods(pattern) if f"{pattern} {each}" in found[host]):
                for control in ("sr-ste", "one-shot", "one-shot trained"):
                    gap = paired(*([r[f"{pattern} {which}"] for r in complete] for which in (name, control)))
                    found[host][f"{pattern} {name}"][f"against {control}"] = [
                        gap["difference"],
                        gap["low"],
                        gap["high"],
                    ]
    return found


def main() -> None:
    """Make what is missing, within the seconds given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--hosts", nargs="+", default=list(HOSTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + asked.seconds
    for seed in asked.seeds:
        for host in asked.hosts:
            done = kept().get(host, {}).get(str(seed), {})
            runs(host, seed, done, lambda: time.monotonic() > end)
            record = kept()  # others may have written meanwhile
            record.setdefault(host, {})[str(seed)] = done
            print(host, seed, {name: round(value, 3) for name, value in done.items() if " int8" not in name})
            settings = {"dense epochs": DENSE, "epochs": EPOCHS, "train pictures": 1000, "click rows": 40_000}
            results = {"settings": settings, "runs": record, "summary": summary(record)}
            write(RESULT, results, "python -m benchmarks.sparsity.training")


def kept() -> dict[str, Any]:
    """Return the runs that the result file holds."""
    return json.loads(RESULT.read_text())["results"]["runs"] if RESULT.exists() else {}


if __name__ == "__main__":
    main()
