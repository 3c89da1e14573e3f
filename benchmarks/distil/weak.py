"""A weak teacher and no labels: how much of the gap to training with labels a student recovers, on digits.

    python -m benchmarks.distil.weak               # writes benchmarks/results/distil_weak.json

Teacher: logistic regression on 5 % of the labels. Student: a small convolutional network that sees the teacher only.
Gap recovered = (student - teacher) / (student trained on labels - teacher), accuracies on 597 test digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.distil.networks import SmallCnn
from benchmarks.distil.results import table, write
from lessen.methods.distil.adapt_conf import AdaptConf
from lessen.methods.distil.aug_conf import AugConf
from lessen.methods.distil.kd import KD
from lessen.metrics import ACCURACY
from lessen.recipe import Recipe
from lessen.task import Split, Task
from lessen.train.settings import FitSettings

SEEDS = range(5)
METHODS: dict[str, Any] = {
    "kd": KD(weight=1.0, task_weight=0.0, temperature=1.0),
    "aug-conf": AugConf(task_weight=0.0),
    "adapt-conf": AdaptConf(task_weight=0.0),
    "adapt-conf, rising": AdaptConf(task_weight=0.0, rise=0.25),
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


def main() -> None:
    """Run all seeds and print the table."""
    torch.set_num_threads(1)
    runs, recovered = [], []
    for seed in SEEDS:
        task = Digits(seed)
        master = Linear(task.x[:50], task.y[:50])
        taught = task.view(teacher=lambda seed, master=master: master)
        torch.manual_seed(seed)
        student = task.build()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            best = task.build()
            task.train(best, seed=seed)
        run = {"teacher": task.score(master, "test"), "with labels": task.score(best, "test")}
        for name, method in METHODS.items():
            model, _ = Recipe([method]).apply(student, taught, seed=seed)
            run[name] = task.score(model, "test")
        runs.append(run)
        gap = run["with labels"] - run["teacher"]
        recovered.append({name: (run[name] - run["teacher"]) / gap for name in METHODS})
        print(seed, {name: round(value, 3) for name, value in run.items()}, flush=True)
    found = {"gap recovered, against kd": table(recovered, "kd"), "accuracy": table(runs, "kd"), "runs": runs}
    print({name: {k: round(v, 3) for k, v in row.items()} for name, row in found["gap recovered, against kd"].items()})
    write(Path("benchmarks/results/distil_weak.json"), found, "python -m benchmarks.distil.weak")


if __name__ == "__main__":
    main()
