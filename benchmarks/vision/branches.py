"""What int8 costs networks that trained as branches: RepVGG, QARepVGG, RepOptimizer, and YOLOv6's QAT, on CIFAR-10.

    python -m benchmarks.vision.branches [--seconds 170]     # writes benchmarks/results/vision_branches.json

One network of six 3 x 3 convolutions with norms, three seeds: trained plain, as RepVGG (a norm behind each branch), as
QARepVGG, and by RepOptimizer, each for the same number of epochs; then rounded to int8 (weights by channel, inputs by
least error on four batches), and RepVGG also trained under rounding. 2,000 training pictures, 1,000 test pictures; what
is compared is each network with its own float form. Finished runs are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lessen
from benchmarks.distil.results import paired, write
from lessen.method import Method
from lessen.methods.weights.qarepvgg import QARepVGG
from lessen.methods.weights.rep_optimizer import RepOptimizer
from lessen.methods.weights.static_int8 import StaticInt8Layers
from lessen.methods.weights.yolov6_qat import YOLOv6QAT
from lessen.recipe import Recipe
from lessen.train.settings import FitSettings

RESULT = Path("benchmarks/results/vision_branches.json")
SEEDS, EPOCHS, QAT_EPOCHS = range(3), 5, 1
PLAN = ((3, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
SETTINGS = FitSettings(
    epochs=EPOCHS, learning_rate=0.04, optimizer="sgd", weight_decay=5e-4, schedule="cosine", patience=None, keep="last"
)
STARTS: dict[str, Method | None] = {
    "plain": None, "repvgg": QARepVGG(norms="each"), "qarepvgg": QARepVGG(), "rep-optimizer": RepOptimizer(
        learning_rate=0.04
    ),
}  # fmt: skip
ROUNDED: dict[str, Callable[[], Method]] = {
    "int8": lambda: StaticInt8Layers(ranges="mse", calibration_batches=4),
    "int8, whole range": lambda: StaticInt8Layers(ranges="minmax", calibration_batches=4),
    "yolov6-qat": lambda: YOLOv6QAT(epochs=QAT_EPOCHS, learning_rate=2e-3),
}


class Net(nn.Module):
    """Six convolutions with norms, a mean and a linear layer: [B, 3, 32, 32] to logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        parts = [(nn.Conv2d(a, b, 3, s, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b, s in PLAN]
        self.blocks = nn.ModuleList(nn.Sequential(*part) for part in parts)
        self.head = nn.Linear(PLAN[-1][1], 10)
        assert all(one[1] == other[0] for one, other in pairwise(PLAN))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits."""
        for block in self.blocks:
            pictures = block(pictures)
        logits: Tensor = self.head(pictures.mean((2, 3)))
        return logits


def runs(task: Any, seed: int, done: dict[str, float], late: Callable[[], bool]) -> None:
    """Fill in what a seed lacks: accuracy by name."""
    for name, method in STARTS.items():
        if late() or f"{name} yolov6-qat" in done:
            continue
        torch.manual_seed(seed)
        model = task.build()
        if method is None:
            with torch.random.fork_rng():
                task.train(model, seed=seed)
        else:
            model, _ = Recipe([method]).apply(model, task, seed=seed)
        done[name] = task.score(model.eval(), "test")
        for kind, make in ROUNDED.items():
            made, _ = Recipe([make()]).apply(model, task, seed=seed)
            done[f"{name} {kind}"] = task.score(made, "test")
        print(seed, name, {kind: round(v, 4) for kind, v in done.items() if kind.startswith(name)}, flush=True)


def summary(record: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return the mean of each, and what rounding changes, paired over seeds."""
    whole = [done for done in record.values() if f"{list(STARTS)[-1]} yolov6-qat" in done]
    if len(whole) < len(SEEDS):
        return {}
    float_of = {name: next(start for start in sorted(STARTS, key=len, reverse=True) if name.startswith(start))
                for name in whole[0]}  # fmt: skip
    return {name: paired([one[name] for one in whole], [one[float_of[name]] for one in whole]) for name in whole[0]}


def main() -> None:
    """Make what is missing, within the seconds of the processor given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1e9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    given = {"test_examples": 1000, "validation_examples": 200, "train_examples": 2000, "batch": 64}
    task = lessen.get_task({"name": "image-cifar10", **given}).view(build=Net, settings=SETTINGS)
    record: dict[str, dict[str, float]] = json.loads(RESULT.read_text())["results"]["runs"] if RESULT.exists() else {}
    for seed in SEEDS:
        done = record.setdefault(str(seed), {})
        runs(task, seed, done, lambda: time.process_time() > asked.seconds)
        settings = {"epochs": EPOCHS, "qat epochs": QAT_EPOCHS, **given}
        results = {"settings": settings, "runs": record, "summary": summary(record)}
        write(RESULT, results, "python -m benchmarks.vision.branches")
    print(json.dumps(summary(record), indent=1))


if __name__ == "__main__":
    main()
