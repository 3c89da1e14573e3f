"""Forecasts of bytes and time beside what is stored and measured: 20 recipes on each of 5 models not used for the fit.

    python -m benchmarks.advise.forecasts [--models clicks bert] [--rounds 24] [--out benchmarks/results]

The machine is measured first (`lessen doctor --measure`), on layers and operations of other sizes than any model here.
Each recipe is forecast, then applied for real, written, and timed in turns with the uncompressed model, in the
processor's time on one thread; the error is that of the ratio to the uncompressed model. Models have random weights,
which move neither bytes nor time. Quiet, all of it takes about 7 minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lessen import files
from lessen.advice.advise import forecast_seconds
from lessen.artifact import folder as artifact
from lessen.artifact.delta import base_of
from lessen.environment import environment
from lessen.measure import machine as machines
from lessen.measure.latency import pinned_threads
from lessen.measure.sketch import bytes_of, sketch
from lessen.measure.work import Work, work_of
from lessen.recipe import Recipe
from lessen.stored.serving import served
from lessen.task import Split, Task
from lessen.tasks import get_task

RESULTS = Path(__file__).parents[1] / "results"
Steps = list[dict[str, dict[str, Any]]]


# -- models ----------------------------------------------------------------------------------------------------------
class Perceptron(nn.Module):
    """Four layers of a width between those that the fit has seen: float32 [B, 300] to [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (300, 900, 900, 900, 10)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        for layer in self.layers[:-1]:
            inputs = torch.relu(layer(inputs))
        found: Tensor = self.layers[-1](inputs)
        return found


class Rows(Task):
    """Random rows for the perceptron; nothing is trained on them."""

    name = "rows"
    metrics = get_task({"name": "shapes"}).metrics

    def build(self) -> nn.Module:
        """Return the perceptron."""
        return Perceptron()

    def batches(self, split: Split, seed: int = 0) -> Any:
        """Yield four batches of 40 rows."""
        draw = torch.Generator().manual_seed(len(split))
        for _ in range(4):
            yield torch.randn(40, 300, generator=draw), torch.randint(0, 10, (40,), generator=draw)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy."""
        return nn.functional.cross_entropy(self.forward(model, batch), batch[1])


def clicks() -> tuple[nn.Module, Task]:
    """Return the click model of the demo's kind on synthetic clicks."""
    task = get_task({"name": "ctr-synthetic", "rows": 6000, "fields": 8, "rows_per_field": 2500})
    task.settings = task.settings.__class__(epochs=1)
    return task.build().eval(), task


def _host(make: Callable[[], Any], **options: Any) -> Callable[[], tuple[nn.Module, Task]]:
    def build() -> tuple[nn.Module, Task]:
        place = Path(tempfile.mkdtemp())
        make().save_pretrained(place)
        task = get_task({"name": "agreement", "model": str(place), **options})
        return task.reference(), task

    return build


def bert() -> Any:
    """Return an encoder of MiniLM's shape."""
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertModel(BertConfig(vocab_size=2000, **shape))


def vit() -> Any:
    """Return a small vision Transformer."""
    from transformers import ViTConfig, ViTForImageClassification

    shape = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    return ViTForImageClassification(ViTConfig(image_size=64, patch_size=8, num_labels=10, **shape))


def llama() -> Any:
    """Return a small language model with grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 320, "num_hidden_layers": 6, "num_attention_heads": 10, "intermediate_size": 864}
    return LlamaForCausalLM(LlamaConfig(vocab_size=3000, num_key_value_heads=5, tie_word_embeddings=True, **shape))


MODELS: dict[str, Callable[[], tuple[nn.Module, Task]]] = {
    "clicks": clicks,
    "perceptron": lambda: (Perceptron().eval(), Rows()),
    "bert": _host(bert, examples=32, batch=8, length=48),
    "vit": _host(vit, examples=32, batch=8),
    "llama": _host(llama, examples=16, batch=2, length=24),
}


# -- recipes ---------------------------------------------------------------------------------------------------------
def _rtn(**knobs: Any) -> dict[str, dict[str, Any]]:
    return {"rtn": {"min_weights": 64, **knobs}}


INT8: dict[str, dict[str, Any]] = {"linear-int8": {"min_weights": 64}}
LINEARS: list[Steps] = [
    [INT8],
    [{"linear-int8": {"min_weights": 64, "activations": "tensor"}}],
    [{"linear-half": {}}],
    *([_rtn(bits=bits)] for bits in (8, 4, 3, 2)),
    *([_rtn(bits=bits, activations="int8")] for bits in (8, 4, 2)),
    [_rtn(bits=4, group=32)],
    [{"weight-clustering": {}}],
]
BLOCKS: list[Steps] = [
    [{"magnitude-pruning": {"share": 0.75}}],
    [{"magnitude-pruning": {"share": 0.5}}],
    [{"layer-cut": {"layers": 3}}],
    [{"magnitude-pruning": {"share": 0.5}}, _rtn(bits=4)],
    [{"magnitude-pruning": {"share": 0.6}}, INT8],
    [{"layer-cut": {"layers": 4}}, INT8],
    [{"layer-cut": {"layers": 2}}, _rtn(bits=4)],
    [_rtn(bits=3, activations="int8")],
]
ROWS: list[Steps] = [
    [{"linear-low-rank": {"rank": 6, "calibration_batches": 4}}],
    *([{"emb-rowwise-quant": {"bits": bits}}] for bits in (8, 4, 2)),
    [{"emb-half": {}}],
    [{"emb-hash": {"ratio": 0.5}}],
    [{"emb-rowwise-quant": {"bits": 4}}, INT8],
    [{"emb-rowwise-quant": {"bits": 8}}, _rtn(bits=4, activations="int8")],
]
WIDE: list[Steps] = [
    [{"linear-low-rank": {"rank": 24, "calibration_batches": 4}}],
    *([{"linear-low-rank": {"rank": rank, "calibration_batches": 4}}] for rank in (64, 128, 250)),
    [{"linear-low-rank": {"rank": 96, "calibration_batches": 4}}, INT8],
    [{"linear-low-rank": {"rank": 96, "calibration_batches": 4}}, _rtn(bits=4)],
    [_rtn(bits=4, only=["layers.1"])],
    [{"linear-int8": {"only": ["layers.1", "layers.2"]}}],
]
RECIPES = {"clicks": ROWS, "perceptron": WIDE, "bert": BLOCKS, "vit": BLOCKS, "llama": BLOCKS}


# -- measuring -------------------------------------------------------------------------------------------------------
def measured(name: str, machine: machines.Machine, rounds: int) -> list[dict[str, Any]]:
    """Return forecasts and measurements of every recipe on a model."""
    torch.manual_seed(0)
    model, task = MODELS[name]()
    with pinned_threads(1):
        before = next(iter(work_of(task, model).values()))
        now = _now(task, model)
        rows = []
        for steps in (*LINEARS, *RECIPES[name]):
            row = _row(Recipe.parse({"steps": steps}), model, task, machine, before, now, rounds)
            if row is not None:
                rows.append(row)
                print(name, row, flush=True)
    return rows


def _now(task: Task, model: nn.Module) -> float:
    work = next(iter(task.workloads(1).values()))
    with served(model), torch.no_grad():
        return machines.timed(lambda: work.call(model, work.items[0]))


def _row(
    recipe: Recipe, model: nn.Module, task: Task, machine: machines.Machine, before: Work, now: float, rounds: int
) -> dict[str, Any] | None:
    start = time.process_time()
    told = sketch(recipe, model, task)
    if told.model is None:
        print(f"left out, {_spelled(recipe)}: {told.why}", flush=True)
        return None
    found = next(iter(work_of(task, told.model).values()))
    spent = time.process_time() - start
    compact, _ = recipe.apply(model, task)
    with tempfile.TemporaryDirectory() as place:
        described = task.describe() if task.Options is not None else None
        artifact.save(Path(place) / "a", compact, model, task=described,
                      reference=base_of(model) if recipe.keeps_base else None)  # fmt: skip
        written = sum((Path(place) / "a" / n).stat().st_size for n in ("model.safetensors", artifact.STRUCTURE))
    work = next(iter(task.workloads(4).values()))
    with served(model, compact):
        now_ms, ratios = paired(lambda item: work.call(model, item), lambda item: work.call(compact, item), work.items,
                                rounds)  # fmt: skip
    return {
        "recipe": _spelled(recipe),
        "bytes_forecast": bytes_of(told.model, model, task, recipe),
        "bytes_written": written,
        "ratio_forecast": round(forecast_seconds(machine, found, before, now) / now, 4),
        "ratio": round(float(np.median(ratios)), 4),
        "ratio_quartiles": np.quantile(ratios, (0.25, 0.75)).round(4).tolist(),
        "reference_ms": round(now_ms, 3),
        "forecast_cpu_s": round(spent, 3),
    }  # fmt: skip


def paired(
    reference: Callable[[Any], Any], compact: Callable[[Any], Any], items: list[Any], rounds: int
) -> tuple[float, list[float]]:
    """Return the reference's median milliseconds and compact / reference of each round, in the processor's time.

    With one thread that is the time of a quiet machine, but for what others leave in the caches.
    """
    times = []
    with torch.no_grad():
        for number in range(-2, rounds):
            pair = [0.0, 0.0]
            for which in (0, 1) if number % 2 else (1, 0):
                start = time.process_time()
                (reference, compact)[which](items[number % len(items)])
                pair[which] = time.process_time() - start
            if number >= 0:
                times.append(pair)
    return 1000 * float(np.median([pair[0] for pair in times])), [pair[1] / pair[0] for pair in times]


def _spelled(recipe: Recipe) -> str:
    """Return the steps with the knobs that are not at their defaults."""
    words = []
    for step in recipe.steps:
        plain = type(step)().knobs()
        words.append(" ".join([step.card.name, *(f"{k}={v}" for k, v in step.knobs().items() if plain.get(k) != v)]))
    return ", ".join(words)


def summary(models: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the figures that the guide shows."""
    rows = [row for found in models.values() for row in found]
    errors = [abs(row["ratio_forecast"] / row["ratio"] - 1) for row in rows]
    times = np.array([[row[key] * row["reference_ms"] for key in ("ratio_forecast", "ratio")] for row in rows])
    return {
        "recipes": len(rows),
        "bytes_equal": sum(row["bytes_forecast"] == row["bytes_written"] for row in rows),
        "median_error": round(float(np.median(errors)), 4),
        "nine_of_ten_within": round(float(np.quantile(errors, 0.9)), 4),
        "rank_correlation": round(_spearman(times[:, 0], times[:, 1]), 4),
        "rank_correlation_within": {
            name: round(_spearman(*(np.array([row[key] for row in found]) for key in ("ratio_forecast", "ratio"))), 4)
            for name, found in models.items()
        },
    }  # fmt: skip


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(one)).astype(float) for one in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--keep-machine", action="store_true", help="use the figures in the cache, if any")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    machine = machines.known() if asked.keep_machine else None
    if machine is None:
        start = time.perf_counter()
        machine = machines.measure()
        machines.save(machines.place_of(), machine)
        print(f"the machine was measured in {time.perf_counter() - start:.0f} s", flush=True)
    path = asked.out / "advise_forecasts.json"
    known = json.loads(path.read_text())["models"] if path.is_file() else {}
    for name in asked.models:
        known[name] = measured(name, machine, asked.rounds)
        models = {one: known[one] for one in MODELS if one in known}
        told = {"summary": summary(models), "env": environment(1), "models": models}
        files.atomic_write(path, json.dumps(told, indent=1) + "\n")
    print(json.dumps(summary(known), indent=1))


if __name__ == "__main__":
    main()
