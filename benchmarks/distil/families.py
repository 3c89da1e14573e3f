"""Students of one family, a teacher of another, on drawn shapes of low contrast: which method helps, over seeds.

    python -m benchmarks.distil.families [--all]   # writes benchmarks/results/distil_families.json

Without --all: a ViT teaches a convolutional network by the methods of `QUICK`.

The teacher has seen more pictures than its students are given, as teachers have. Accuracy on 2000 test pictures.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.distil.networks import Grey, Mixer, SmallCnn
from benchmarks.distil.results import table, write
from lessen.methods.distil.crd import CRD
from lessen.methods.distil.cwd import CWD
from lessen.methods.distil.dkd import DKD
from lessen.methods.distil.fitnet import FitNet
from lessen.methods.distil.kd import KD
from lessen.methods.distil.ofa_kd import OFAKD
from lessen.methods.distil.rkd import RKD
from lessen.recipe import Recipe
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask, shapes
from lessen.train.settings import FitSettings

SEEDS = range(3)
STUDENT_SETTINGS = FitSettings(
    epochs=10, learning_rate=3e-3, optimizer="adamw", weight_decay=0.05, schedule="cosine", patience=None, keep="last"
)
METHODS: dict[str, Any] = {
    "kd": KD(temperature=1.0, weight=1.0, task_weight=1.0), "dkd": DKD(), "fitnet": FitNet(), "rkd": RKD(),
    "crd": CRD(), "cwd": CWD(), "ofa": OFAKD(), "ofa 1.5": OFAKD(exponent=1.5),
}  # fmt: skip
QUICK = ("kd", "fitnet", "ofa", "ofa 1.5")
PAIRS: dict[str, tuple[Any, Any]] = {
    "vit to cnn": (Grey, SmallCnn), "vit to mixer": (Grey, Mixer), "cnn to vit": (lambda: SmallCnn(16), Grey),
}  # fmt: skip


def built(make: Any, seed: int) -> nn.Module:
    """Return a network initialised by a seed."""
    torch.manual_seed(seed)
    model: nn.Module = make()
    return model


def accuracy(model: nn.Module) -> float:
    """Return the accuracy on 2000 pictures that no split holds."""
    pictures, kinds = shapes(2000, "faded", 10_007)
    with torch.no_grad():
        return float((model.eval()(pictures).argmax(dim=1) == kinds).float().mean())


def main() -> None:
    """Run all pairs and print the tables."""
    whole = "--all" in sys.argv
    torch.set_num_threads(1)
    many = ShapesTask(ShapesOptions(style="faded", examples=2000, seed=1))
    few = ShapesTask(ShapesOptions(style="faded", examples=300, seed=2)).view(settings=STUDENT_SETTINGS)
    found: dict[str, Any] = {}
    masters: dict[str, nn.Module] = {}
    for pair, (teacher, student) in PAIRS.items() if whole else list(PAIRS.items())[:1]:
        kind = pair.split()[0]
        if kind not in masters:
            masters[kind] = built(teacher, 100)
            many.train(masters[kind], settings=replace(STUDENT_SETTINGS, epochs=8))
        master = masters[kind]
        task = few.view(teacher=lambda seed, master=master: master)
        runs = []
        for seed in SEEDS:
            model = built(student, seed)
            plain = built(student, seed)
            with torch.random.fork_rng():
                few.train(plain, seed=seed)
            run = {"no teacher": accuracy(plain)}
            for name, method in METHODS.items():
                if not whole and name not in QUICK:
                    continue
                taught, _ = Recipe([method]).apply(model, task, seed=seed)
                run[name] = accuracy(taught)
            runs.append(run)
            print(pair, seed, {name: round(value, 3) for name, value in run.items()}, flush=True)
        found[pair] = {"teacher": accuracy(master), "against kd": table(runs, "kd"), "runs": runs}
    settings = {"train pictures": 300, "teacher's pictures": 2000, "epochs": 10, "seeds": len(SEEDS)}
    write(
        Path("benchmarks/results/distil_families.json"),
        {"settings": settings, **found},
        "python -m benchmarks.distil.families",
    )


if __name__ == "__main__":
    main()
