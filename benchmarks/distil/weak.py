"""A weak teacher and no labels: how much of the gap to training with labels a student recovers, on digits.

    python -m benchmarks.distil.weak --seeds 5 [--seconds 150]   # writes benchmarks/results/distil_weak.json

Student: a small convolutional network that sees the teacher only. Three settings:

few labels           the teacher is a logistic regression on 50 labels: its errors are systematic
pretrained student   the same teacher; the student has learned to tell rotations first
random errors        the teacher is a logistic regression on 300 labels, of which 40 % are drawn

Gap recovered = (student - teacher) / (student trained on labels - teacher), accuracies on 597 test digits. Run it again
to go on where the time was over.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.distil.networks import SmallCnn
from benchmarks.distil.results import Rows, table
from lessen.methods.distil.adapt_conf import AdaptConf
from lessen.methods.distil.aug_conf import AugConf
from lessen.methods.distil.kd import KD
from lessen.methods.distil.rotnet import RotNet
from lessen.metrics import ACCURACY
from lessen.recipe import Recipe
from lessen.task import Split, Task
from lessen.train.settings import FitSettings

RESULT = Path("benchmarks/results/distil_weak.json")
SETTINGS = ("few labels", "pretrained student", "random errors")
METHODS: dict[str, Any] = {
    "kd": KD(weight=1.0, task_weight=0.0, temperature=1.0),
    "aug-conf": AugConf(task_weight=0.0),
    "adapt-conf": AdaptConf(task_weight=0.0),
    "adapt-conf, rising": AdaptConf(task_weight=0.0, rise=0.25),
    "adapt-conf, T 4, rising": AdaptConf(task_weight=0.0, rise=0.25, sharpness=4.0),
}


class Digits(Task):
    """Scikit-learn's digits; batches are (float32 [B, 1, 8, 8], class int64 [B])."""

    name = "digits"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(
        epochs=15, learning_rate=3e-3, optimizer="adamw", schedule="cosine", patience=None, keep="last"
    )

    def __init__(self, seed: int) -> None:
        from sklearn.datasets import load_digits

        found = load_digits()
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(seed))
        self.x = torch.tensor(found.images, dtype=torch.float32)[order][:, None] / 16
        self.y = torch.tensor(found.target, dtype=torch.int64)[order]
        self.rows = {"train": (0, 1000), "validation": (1000, 1200), "test": (1200, 1797)}

    def build(self) -> nn.Module:
        """Return the untrained network."""
        return SmallCnn(classes=10)

    def batches(self, split: Split, seed: int = 0) -> Iterator[Any]:
        """Yield batches of 50."""
        order = torch.arange(*self.rows[split])
        if split == "train":
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
        for rows in torch.split(order, 50):
            yield self.x[rows], self.y[rows]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross-entropy."""
        return nn.functional.cross_entropy(self.forward(model, batch), batch[1])


class Linear(nn.Module):
    """Logistic regression as a network."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        from sklearn.linear_model import LogisticRegression

        fitted = LogisticRegression(max_iter=2000).fit(x.flatten(1).numpy(), y.numpy())
        self.layer = nn.Linear(64, 10)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor(fitted.coef_))
            self.layer.bias.copy_(torch.tensor(fitted.intercept_))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits [B, 10]."""
        logits: Tensor = self.layer(pictures.flatten(1))
        return logits


def weak(task: Digits, setting: str, seed: int) -> nn.Module:
    """Return the teacher of a setting."""
    if setting != "random errors":
        return Linear(task.x[:50], task.y[:50])
    generator = torch.Generator().manual_seed(seed)
    labels = task.y[:300].clone()
    wrong = torch.rand(300, generator=generator) < 0.4
    labels[wrong] = torch.randint(10, (int(wrong.sum()),), generator=generator)
    return Linear(task.x[:300], labels)


def student_of(task: Digits, setting: str, seed: int) -> nn.Module:
    """Return the student before the teacher has taught it."""
    torch.manual_seed(seed)
    student = task.build()
    if setting == "pretrained student":
        student, _ = Recipe([RotNet()]).apply(student, task, seed=seed)
    return student


def main() -> None:
    """Measure what is not there yet and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(RESULT, given.seconds)
    for setting, seed, name in itertools.product(SETTINGS, range(given.seeds), ("teacher", "with labels", *METHODS)):
        if not rows.open(setting, str(seed), name):
            continue
        task = Digits(seed)
        model = master = weak(task, setting, seed)
        if name == "with labels":
            model = student_of(task, setting, seed)
            task.train(model, seed=seed)
        elif name in METHODS:
            taught = task.view(teacher=lambda seed, master=master: master)
            model, _ = Recipe([METHODS[name]]).apply(student_of(task, setting, seed), taught, seed=seed)
        rows.add(setting, str(seed), name, task.score(model, "test"))
        rows.write(made_of(rows), "python -m benchmarks.distil.weak")


def made_of(rows: Rows) -> dict[str, Any]:
    """Return, for each setting, accuracies and gaps recovered against kd."""
    found: dict[str, Any] = {}
    for setting in rows.rows:
        runs = [run for run in rows.whole(setting) if "kd" in run]
        gaps = [
            {
                name: (run[name] - run["teacher"]) / (run["with labels"] - run["teacher"])
                for name in METHODS
                if name in run
            }
            for run in runs
        ]
        found[setting] = {"accuracy": table(runs, "kd"), "gap recovered, against kd": table(gaps, "kd")}
    return found


if __name__ == "__main__":
    main()
