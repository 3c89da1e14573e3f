"""One short embedding a picture: CFCD beside softmax and CosFace, on CIFAR-10 as classes.

    python -m benchmarks.retrieval.embeddings [--seeds 3]

A small CNN from scratch on 2,000 training pictures, 64 numbers a picture; 400 test pictures look for their class among
1,600 others (mean average precision, interval over queries, mean over seeds). Each row trains as many epochs in all.
CosFace has the fixed scale and margin that are usual (30, 0.35); the control is not trained. One thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.retrieval.records import interval, write
from lessen.data.catalogue import get
from lessen.data.cifar10 import augment, load_cifar10, normalise
from lessen.method import Context
from lessen.methods import retrain
from lessen.methods.retrieval.cfcd import CFCD
from lessen.metrics import ACCURACY
from lessen.metrics.retrieval import ranked
from lessen.retrieval.madacos import MadaCos
from lessen.stored.linears.cosine_head import CosineHead
from lessen.task import Split, Task
from lessen.train.settings import FitSettings

TRAIN, QUERIES, GALLERY, EPOCHS, DIM = 2000, 400, 1600, 10, 64


class Pictures(Task):
    """2,000 pictures of CIFAR-10; the head reads one pooled vector a picture."""

    name = "cifar10-classes"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=EPOCHS, learning_rate=2e-3, optimizer="adamw", weight_decay=0.01, patience=EPOCHS)

    def __init__(self) -> None:
        held = load_cifar10(get("cifar10"))
        self.train_rows = held.train.pixels[:TRAIN], held.train.labels[:TRAIN]
        self.others: dict[str, tuple[Tensor, Tensor]] = {
            "validation": (held.train.pixels[-200:], held.train.labels[-200:]),
            "test": (held.test.pixels[: QUERIES + GALLERY], held.test.labels[: QUERIES + GALLERY]),
        }

    def build(self) -> nn.Module:
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, DIM), nn.Linear(DIM, 10))

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        if split != "train":
            pixels, labels = self.others[split]
            yield from zip(normalise(pixels).split(200), labels.split(200), strict=True)
            return
        generator = torch.Generator().manual_seed(seed)
        for rows in torch.randperm(TRAIN, generator=generator).split(100):
            yield augment(normalise(self.train_rows[0][rows]), generator), self.train_rows[1][rows]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def precision(model: nn.Module, task: Pictures) -> np.ndarray:
    """Return the average precision of each query."""
    head = model[-1]
    features = []
    for pictures, _ in task.batches("test"):
        before = model[:-1](pictures)
        features.append(head.embed(before) if isinstance(head, CosineHead) else before)
    unit, labels = F.normalize(torch.cat(features), dim=1), task.others["test"][1]
    grades = (labels[:QUERIES][:, None] == labels[QUERIES:][None]).numpy().astype(float)
    return np.asarray(ranked((unit[:QUERIES] @ unit[QUERIES:].t()).numpy(), grades)["map"])


def trained(name: str, task: Pictures, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = task.build()
    if name == "control: not trained":
        return model.eval()
    if name == "softmax":
        retrain.train(model, task, Context(seed=seed))
        return model.eval()
    fixed = mock.patch.object(MadaCos, "settled", return_value=(30.0, 0.35))
    both = name.endswith("and matching cells")
    step = CFCD(dim=DIM, alpha=0.02, local_weight=float(both), epochs=EPOCHS // 2 if both else EPOCHS)
    if name == "CosFace":
        with fixed:
            return step.apply(model, task, Context(seed=seed)).eval()
    return step.apply(model, task, Context(seed=seed)).eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    task = Pictures()
    names = ("softmax", "CosFace", "MadaCos", "CFCD: MadaCos and matching cells", "control: not trained")
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for seed in range(asked.seeds):
        for name in names:
            found[name].append(precision(trained(name, task, seed), task))
            print(seed, name, round(float(found[name][-1].mean()), 4), flush=True)
    base = np.mean(found["softmax"], axis=0)
    rows = {
        name: {
            "map": interval(np.mean(values, axis=0)), "by_seed": [round(float(v.mean()), 4) for v in values],
            "over_softmax": interval(np.mean(values, axis=0) - base),
        }
        for name, values in found.items()
    }  # fmt: skip
    sizes = {"train": TRAIN, "queries": QUERIES, "gallery": GALLERY, "epochs": EPOCHS, "dim": DIM}
    write("retrieval_embeddings", "embeddings", "", {**sizes, "seeds": asked.seeds, "rows": rows})


if __name__ == "__main__":
    main()
