"""Students of one family, a teacher of another, on drawn shapes of low contrast: which method helps, over seeds.

    python -m benchmarks.distil.families --seeds 12 [--seconds 150]   # writes benchmarks/results/distil_families.json

Run it again to go on where the time was over. The teacher has seen more pictures than its students are given, as
teachers have. Accuracy on 2000 test pictures.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from benchmarks.distil.networks import Grey, Mixer, SmallCnn
from benchmarks.distil.results import Rows, table
from lessen.data.cache import cache_folder
from lessen.files import atomic_write
from lessen.methods.distil.crd import CRD
from lessen.methods.distil.cwd import CWD
from lessen.methods.distil.dkd import DKD
from lessen.methods.distil.fitnet import FitNet
from lessen.methods.distil.kd import KD
from lessen.methods.distil.ofa_kd import OFAKD
from lessen.methods.distil.rkd import RKD
from lessen.recipe import Recipe
from lessen.task import Task
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask, shapes
from lessen.train.settings import FitSettings

RESULT = Path("benchmarks/results/distil_families.json")
EPOCHS, PICTURES = 10, 300
STUDENT_SETTINGS = FitSettings(
    epochs=EPOCHS,
    learning_rate=3e-3,
    optimizer="adamw",
    weight_decay=0.05,
    schedule="cosine",
    patience=None,
    keep="last",
)
METHODS: dict[str, Any] = {
    "kd": KD(temperature=1.0, weight=1.0, task_weight=1.0), "dkd": DKD(), "fitnet": FitNet(), "rkd": RKD(),
    "crd": CRD(), "cwd": CWD(), "ofa": OFAKD(), "ofa 1.5": OFAKD(exponent=1.5),
}  # fmt: skip
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


def teacher_of(kind: str, make: Any, task: Task) -> nn.Module:
    """Return the teacher of a family, trained the first time and kept in the cache."""
    place = cache_folder() / "distil" / f"shapes-{kind}.safetensors"
    master = built(make, 100)
    if not place.is_file():
        task.train(master, settings=replace(STUDENT_SETTINGS, epochs=8))
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place, save(dict(master.state_dict())))
    master.load_state_dict(load(place.read_bytes()))
    return master


def main() -> None:
    """Run what is not there yet and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    many = ShapesTask(ShapesOptions(style="faded", examples=2000, seed=1))
    few = ShapesTask(ShapesOptions(style="faded", examples=PICTURES, seed=2)).view(settings=STUDENT_SETTINGS)
    rows, masters = Rows(RESULT, given.seconds), dict[str, nn.Module]()
    said = {"train pictures": PICTURES, "teacher's pictures": 2000, "epochs": EPOCHS}
    for pair, seed, name in itertools.product(PAIRS, range(given.seeds), ("teacher", "no teacher", *METHODS)):
        if not rows.open(pair, str(seed), name):
            continue
        kind, (teacher, student) = pair.split()[0], PAIRS[pair]
        if kind not in masters:
            masters[kind] = teacher_of(kind, teacher, many)
        model = masters[kind]
        task = few.view(teacher=lambda seed, master=model: master)
        if name == "no teacher":
            model = built(student, seed)
            few.train(model, seed=seed)
        elif name in METHODS:
            model, _ = Recipe([METHODS[name]]).apply(built(student, seed), task, seed=seed)
        rows.add(pair, str(seed), name, accuracy(model))
        against = {one: table(rows.whole(one), "kd") for one in rows.rows}
        rows.write({"settings": said, "against kd": against}, "python -m benchmarks.distil.families")


if __name__ == "__main__":
    main()
