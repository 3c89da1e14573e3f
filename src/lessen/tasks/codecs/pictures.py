"""The task `pictures`: what a picture codec's bits cost in fidelity, each picture a unit of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.codecs.pictures import Coded
from lessen.codecs.stored import JpegCodec
from lessen.data.textures import textures
from lessen.log import SILENT, Log
from lessen.metrics import Outcomes
from lessen.metrics.images import PSNR
from lessen.task import TIMED, Split, Task, TaskOptions, Workload


class PicturesOptions(TaskOptions):
    """What a study may set under `task:`."""

    pictures: int = Field(48, ge=2, le=100_000, description="test pictures that are drawn")
    side: int = Field(64, ge=16, le=4096, description="height and width in pixels")
    quality: int = Field(95, ge=1, le=100, description="JPEG quality of the uncompressed side of the comparison")
    seed: int = Field(0, ge=0, le=2**31, description="of the pictures")


class Wire(nn.Module):
    """A model that is its codec: pictures uint8 [B, 3, H, W] to those that arrive."""

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.codec: nn.Module = JpegCodec(quality)

    def forward(self, pictures: Tensor) -> Tensor:
        """Send pictures, and return what the receiver sees."""
        arrived: Tensor = self.codec(pictures).pictures
        return arrived


class PicturesTask(Task):
    """Drawn pictures (gradients, edges, gratings, noise) through a codec; batches are uint8 [B, 3, side, side].

    The reference is JPEG of high quality, as cameras write it, so that every rate is compared with what people have.
    """

    name = "pictures"
    metrics = {"psnr": PSNR()}
    columns = ("bits", "pixels", "squared_error", "values")
    provides = frozenset({"calibration"})
    Options = PicturesOptions

    def __init__(self, options: PicturesOptions | None = None) -> None:
        self.options = options or PicturesOptions()

    def build(self) -> nn.Module:
        """Return the codec of the reference, in a model of its own."""
        return Wire(self.options.quality)

    def reference(self, seed: int = 0, log: Log = SILENT) -> nn.Module:  # noqa: ARG002 - it has nothing to train
        """Return the codec of the reference."""
        return self.build().eval()

    def batches(self, split: Split, seed: int = 0) -> Iterator[Tensor]:  # noqa: ARG002 - drawn once
        """Yield batches of 16 pictures, uint8 [B, 3, side, side]; other pictures in every split."""
        number = ("test", "validation", "train").index(split)
        drawn = textures(self.options.pictures, self.options.side, 3 * self.options.seed + number)
        yield from torch.split(drawn, 16)

    def inputs(self, batch: Tensor) -> Tensor:
        """Return the pictures."""
        return batch

    def target(self, batch: Tensor) -> Tensor:
        """Return the pictures that should arrive."""
        return batch

    def coded(self, model: Any, batch: Tensor) -> Coded:
        """Send a batch through the model's codec."""
        found: Coded = model.codec(batch)
        return found

    @torch.no_grad()
    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return, for each picture, bits, pixels, and the squared error summed over its values (0 to 1)."""
        bits, errors = [], []
        for batch in self.batches(split):
            coded = self.coded(model, batch)
            bits.append(coded.bits)
            errors.append(((coded.pictures.double() - batch.double()) / 255).square().flatten(1).sum(dim=1))
        count = self.options.side**2
        joined = torch.cat(bits)
        pixels = torch.full((len(joined),), count, dtype=torch.int64)
        return Outcomes(
            {
                "bits": joined.numpy(),
                "pixels": pixels.numpy(),
                "values": (3 * pixels).numpy(),
                "squared_error": torch.cat(errors).numpy(),
            }
        )

    def costs(self, outcomes: Outcomes) -> Mapping[str, float]:
        """Return bits per pixel over all pictures."""
        return {"bits_per_pixel": float(outcomes["bits"].sum() / outcomes["pixels"].sum())}

    def workloads(self, items: int = TIMED) -> Mapping[str, Workload]:
        """Return `encode` and `decode`, one picture each."""
        batch = self.example_batch()
        pictures = [batch[number % len(batch)] for number in range(items)]
        return {
            "encode": Workload(_encode, pictures, 1, "pictures"),
            "decode": Workload(_decode, pictures, 1, "pictures"),
        }

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}

    def notes(self) -> list[str]:
        """Return what the pictures are."""
        return [f"{self.options.pictures} drawn pictures of {self.options.side} x {self.options.side}, not photographs"]


def _encode(model: Any, picture: Tensor) -> Any:
    return model.codec.compress(picture)


def _decode(model: Any, picture: Tensor) -> Tensor:
    codec = model.codec
    known = vars(codec).setdefault("_sent", {})  # coded once, in the warm-up, so that only decoding is timed
    if id(picture) not in known:
        known[id(picture)] = codec.compress(picture)
    arrived: Tensor = codec.decompress(known[id(picture)])
    return arrived
