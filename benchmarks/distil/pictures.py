"""CIFAR-10 for small students that are made afresh, and teachers of another family: tasks of the studies `distil-*`.

    lessen run studies/distil-vit-to-cnn.yaml --out out/vit-to-cnn

A student sees few pictures, and always the same ones, so that a teacher's outputs can be kept. The ViT that teaches
comes with the package (85.6 %); the convolutional network is trained on all pictures once, and kept in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from benchmarks.distil.networks import Mixer, SmallCnn
from lessen.data.cache import cache_folder
from lessen.data.cifar10 import normalise
from lessen.errors import ConfigError
from lessen.files import atomic_write
from lessen.log import SILENT, Log
from lessen.task import Split
from lessen.tasks.vision.cifar10 import Cifar10Options, Cifar10Task
from lessen.tasks.vision.skipblocknet import SkipblockNet
from lessen.tasks.vision.vit import PlainViT
from lessen.train.settings import FitSettings

BATCH = 50


def small_vit() -> nn.Module:
    """Return a ViT of 64 patches, 62,000 parameters."""
    return PlainViT(width=48, depth=3, heads=2, stem=())


STUDENTS: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: SmallCnn(width=16, classes=10, channels=3, stages=4),
    "vit": small_vit,
    "mixer": lambda: Mixer(width=48, depth=3, classes=10, channels=3, tokens=64),
    "skipblocknet": lambda: SkipblockNet(classes=10, width=0.25, stride=1),
}


class FewPictures(Cifar10Task):
    """CIFAR-10 with few training pictures, never shifted, for a student that a teacher of another family teaches.

    Args:
        student: cnn, vit, mixer or skipblocknet.
        master: vit, which the package brings, or cnn.
        pictures: of the train split.
        epochs: of a training.
    """

    name = "few-pictures"
    pretrained = False

    def __init__(self, student: str = "cnn", master: str = "vit", pictures: int = 2000, epochs: int = 12) -> None:
        if student not in STUDENTS or master not in ("cnn", "vit"):
            raise ConfigError(f"{self.name}: student is one of {', '.join(STUDENTS)}; master is cnn or vit")
        super().__init__(
            Cifar10Options(batch=BATCH, train_examples=pictures, validation_examples=500, test_examples=4000)
        )
        self.student, self.master = student, master
        self.settings = FitSettings(
            epochs=epochs,
            learning_rate=2e-3,
            optimizer="adamw",
            weight_decay=0.05,
            schedule="cosine",
            warmup_steps=30,
            patience=None,
            keep="last",
        )

    def build(self) -> nn.Module:
        """Return the untrained student."""
        return STUDENTS[self.student]()

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:
        """Return the student that labels alone have taught."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build()
            self.train(model, seed=seed, log=log)
        return model.eval()

    def teacher(self, seed: int) -> nn.Module:
        """Return the teacher, in eval mode."""
        return Cifar10Task().reference() if self.master == "vit" else convolutions()

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (pictures, labels); the train split is shuffled by `seed`."""
        if split != "train":
            yield from super().batches(split, seed)
            return
        images = self._split(split)
        order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(seed))
        for rows in torch.split(order, self.options.batch):
            yield normalise(images.pixels[rows]), images.labels[rows]

    def describe(self) -> dict[str, Any]:
        """Return name, options and what is peculiar to this task."""
        return {**super().describe(), "student": self.student, "master": self.master, "epochs": self.settings.epochs}


@cache
def convolutions(epochs: int = 2) -> nn.Module:
    """Return a convolutional network trained on all pictures, from the cache where it is there."""
    place = cache_folder() / "distil" / f"cifar10-cnn-{epochs}.safetensors"
    model = SmallCnn(width=24, classes=10, channels=3, stages=4)
    if not Path(place).is_file():
        task = Cifar10Task(Cifar10Options(batch=100))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = SmallCnn(width=24, classes=10, channels=3, stages=4)
            settings = FitSettings(
                epochs=epochs,
                learning_rate=3e-3,
                optimizer="adamw",
                weight_decay=0.05,
                schedule="cosine",
                warmup_steps=50,
                patience=None,
                keep="last",
            )
            task.train(model, settings=settings)
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place, save_tensors(dict(model.state_dict())))
    model.load_state_dict(load_tensors(place.read_bytes()))
    return model.eval()
