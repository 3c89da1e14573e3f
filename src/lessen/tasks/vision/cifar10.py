"""The task `image-cifar10`: CIFAR-10 with the small plain ViT whose trained weights come with the package."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from lessen.data.catalogue import get
from lessen.data.cifar10 import Cifar10, Images, augment, load_cifar10, normalise
from lessen.errors import TaskError
from lessen.files import read_checked
from lessen.log import SILENT, Log
from lessen.metrics import ACCURACY
from lessen.task import Split, Task, TaskOptions
from lessen.tasks.vision.vit import PlainViT, ViTOptions
from lessen.train.settings import FitSettings

WEIGHTS = Path(__file__).with_name("cifar10_vit.safetensors")
EVALUATION_BATCH = 250


class Cifar10Options(TaskOptions):
    """What a study may set under `task:`."""

    batch: int = Field(128, ge=1, le=4096, description="pictures of a training batch")
    train_examples: int = Field(45_000, ge=1, le=45_000, description="pictures used when a method trains or searches")
    validation_examples: int = Field(5_000, ge=1, le=5_000, description="pictures of the validation split")
    test_examples: int = Field(10_000, ge=1, le=10_000, description="pictures of the test split")
    timing_batch: int = Field(8, ge=1, le=1024, description="pictures of the batch that is timed")


class Cifar10Task(Task):
    """Classify 32 x 32 pictures into ten classes; inputs are normalised float32 [B,3,32,32]."""

    name = "image-cifar10"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=1, learning_rate=3e-5, optimizer="adamw", weight_decay=0.05, clip_norm=1.0)
    Options = Cifar10Options
    pretrained = True

    def __init__(self, options: Cifar10Options | None = None) -> None:
        self.options = options or Cifar10Options()

    def build(self) -> nn.Module:
        """Return the untrained ViT."""
        return PlainViT(ViTOptions())

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:  # noqa: ARG002 - one trained reference
        """Return the ViT with the weights that come with the package, float32, in eval mode."""
        model = self.build()
        tensors = load_tensors(read_checked(WEIGHTS))
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
        return model.eval()

    def batches(self, split: Split, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (pictures, labels); the train split is shuffled, shifted and mirrored by `seed`."""
        images = self._split(split)
        if split != "train":
            pieces = zip(
                torch.split(images.pixels, EVALUATION_BATCH), torch.split(images.labels, EVALUATION_BATCH), strict=True
            )
            yield from ((normalise(pixels), labels) for pixels, labels in pieces)
            return
        generator = torch.Generator().manual_seed(seed)
        for rows in torch.split(torch.randperm(len(images.labels), generator=generator), self.options.batch):
            yield augment(normalise(images.pixels[rows]), generator), images.labels[rows]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the cross-entropy of a batch."""
        return F.cross_entropy(self.forward(model, batch), self.target(batch))

    def example_batch(self) -> tuple[Tensor, Tensor]:
        """Return the first `timing_batch` test pictures."""
        test = self._split("test")
        count = self.options.timing_batch
        return normalise(test.pixels[:count]), test.labels[:count]

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump()}

    def _split(self, split: Split) -> Images:
        limits = {
            "train": self.options.train_examples,
            "validation": self.options.validation_examples,
            "test": self.options.test_examples,
        }
        if split not in limits:
            raise TaskError(f"task {self.name!r} has no split {split!r}; allowed: {', '.join(limits)}")
        images: Images = getattr(_cifar10(), split)
        return Images(images.pixels[: limits[split]], images.labels[: limits[split]])


@lru_cache(maxsize=1)
def _cifar10() -> Cifar10:
    return load_cifar10(get("cifar10"))
