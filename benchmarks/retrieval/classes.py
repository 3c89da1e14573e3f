"""Classes as relevance on real digits: SuperGlobal's reranking, and versions of a model that share a gallery.

    python -m benchmarks.retrieval.classes rerank
    python -m benchmarks.retrieval.classes versions

The 1,797 digits of scikit-learn, 8 x 8 pixels (extra `baselines`). `rerank`: every fourth picture looks for its class
among the others; vectors are raw pixels, principal directions, or random pixels (the control, near chance). Knobs are
the paper's. `versions`: an old model of five classes and a new one of ten, another seed and width, three seeds; a
learnable head against a simplex head, without and with the compatible loss. One thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.method import Context
from lessen.methods import retrain
from lessen.methods.retrieval.stationary_compat import StationaryCompat, features_of
from lessen.metrics import ACCURACY
from lessen.metrics.retrieval import ranked
from lessen.retrieval.compatible import cross_accuracy
from lessen.stored.linears.simplex_head import SimplexHead
from lessen.stored.vectors.flat import FlatVectors
from lessen.stored.vectors.refined import RefinedVectors
from lessen.stored.vectors.staged import Reduction
from lessen.task import Split, Task
from lessen.train.settings import FitSettings

RESULT = Path(__file__).parents[1] / "results" / "retrieval_classes.json"


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pictures).float() / 16, torch.from_numpy(labels).long()


def write(part: str, found: dict[str, Any]) -> None:
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {"benchmark": "retrieval_classes"}
    record[part] = {
        "command": f"python -m benchmarks.retrieval.classes {part}", "load": os.getloadavg(),
        "environment": environment(1), **found,
    }  # fmt: skip
    atomic_write(RESULT, dump_json(record))
    print(json.dumps(found, indent=1))


def interval(values: np.ndarray) -> list[float]:
    draws = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    return [round(float(one), 4) for one in (values.mean(), *np.quantile(values[draws].mean(1), [0.025, 0.975]))]


def rerank() -> None:
    pictures, labels = digits()
    asked = torch.arange(len(labels)) % 4 == 0
    generator = torch.Generator().manual_seed(0)
    kinds = {
        "pixels": pictures,
        "16 principal directions, without the mean": Reduction.principal(pictures - pictures.mean(0), 16)(
            pictures - pictures.mean(0)
        ),
        "6 principal directions, without the mean": Reduction.principal(pictures - pictures.mean(0), 6)(
            pictures - pictures.mean(0)
        ),
        "numbers drawn at random": torch.randn(pictures.shape, generator=generator),
    }
    grades = (labels[asked][:, None] == labels[~asked][None]).numpy().astype(float)
    rows = {}
    for name, made in kinds.items():
        unit = F.normalize(made, dim=1)
        flat = FlatVectors.of(unit[~asked])
        refined = RefinedVectors.around(flat, 400, 9, 0.15)
        before, after = (ranked(index(unit[asked]).numpy(), grades)["map"] for index in (flat, refined))
        rows[name] = {
            "map_before": interval(before), "map_after": interval(after), "change": interval(after - before),
        }  # fmt: skip
    write("rerank", {"queries": int(asked.sum()), "gallery": int((~asked).sum()), "rows": rows})


class Digits(Task):
    """Digits below `classes`; every fifth picture tests, every fifth validates."""

    name = "digits"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=15, learning_rate=3e-3, patience=15)

    def __init__(self, classes: int, width: int) -> None:
        self.classes, self.width = classes, width
        self.pictures, self.labels = digits()

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, self.width), nn.ReLU(), nn.Linear(self.width, 32), nn.ReLU(),
                             nn.Linear(32, self.classes))  # fmt: skip

    def rows(self, split: Split) -> Tensor:
        turn = {"test": (0,), "validation": (1,), "train": (2, 3, 4)}[split]
        chosen = torch.tensor([n % 5 in turn for n in range(len(self.labels))]) & (self.labels < self.classes)
        return chosen.nonzero()[:, 0]

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        rows = self.rows(split)
        if split == "train":
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
        for part in rows.split(64):
            yield self.pictures[part], self.labels[part]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])


def learnable(task: Task, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = task.build()
    retrain.train(model, task, Context(seed=seed))
    return model.eval()


def simplex(task: Task, seed: int, classes: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return StationaryCompat(classes=classes).apply(task.build(), task, Context(seed=seed)).eval()


def versions() -> None:
    """Judge queries of a new model in the gallery of an old one, on the five classes that both know and on all ten.

    The gallery holds the training pictures; templates are class means. The old model has never seen the last five
    classes; their pictures are in its gallery all the same.
    """
    rows: dict[str, dict[str, list[float]]] = {}
    for seed in range(3):
        few, many = Digits(5, 32), Digits(10, 48)
        test, train = many.rows("test"), many.rows("train")
        inputs, labels = many.pictures[test], many.labels[test]
        gallery, known = many.pictures[train], many.labels[train]

        def plain(model: nn.Module, pictures: Tensor) -> Tensor:
            return model[:-1](pictures)  # type: ignore[index]

        def held(model: nn.Module, pictures: Tensor, task: Task = many) -> Tensor:
            return features_of(model, task, (pictures, torch.zeros(len(pictures), dtype=torch.int64)))

        pairs = {
            "learnable heads": (learnable(few, seed), learnable(many, seed + 100), plain),
            "simplex heads": (simplex(few, seed), simplex(many, seed + 100), held),
        }
        old = pairs["simplex heads"][0]
        step, context = StationaryCompat(classes=16), Context(seed=seed)
        grown = copy.deepcopy(old)
        head = next(one for one in grown.modules() if isinstance(one, SimplexHead))
        head.out_features = 10  # its corners are there already
        pairs["simplex heads, trained on with the compatible loss"] = (
            old, step.apply(grown, many, context).eval(), held,
        )  # fmt: skip
        for name, (before, after, features) in pairs.items():
            with torch.no_grad():
                for which in ("classes of both", "all classes"):
                    there, here = (known < 5, labels < 5) if which == "classes of both" else (known < 10, labels < 10)
                    results = {
                        "old in old": (before, before), "new in old": (after, before), "new in new": (after, after),
                    }  # fmt: skip
                    for pair, (ask, hold) in results.items():
                        right = cross_accuracy(
                            features(ask, inputs[here]), labels[here], features(hold, gallery[there]), known[there]
                        )
                        rows.setdefault(name, {}).setdefault(f"{which}: {pair}", []).append(
                            round(float(right.mean()), 4)
                        )
    write("versions", {"seeds": 3, "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("rerank", "versions"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rerank() if asked.part == "rerank" else versions()


if __name__ == "__main__":
    main()
