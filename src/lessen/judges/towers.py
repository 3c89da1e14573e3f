"""Pictures and texts as vectors of one space: the task's own encoders, or a Hugging Face model with two towers.

A task of your own gives `encode_images(model, pictures)` and `encode_texts(model, texts)`: pictures float32
[n, 3, side, side] from 0 to 1, vectors [n, width]. A Hugging Face model has its `get_image_features` and
`get_text_features` called, with the tokenizer and the normalisation of its folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.architectures.loading import host_folder, load_tokenizer
from lessen.errors import DataError
from lessen.task import Task, main_tensor
from lessen.train.device import device_of, to_device

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, where a folder says nothing."""
CALL = 64


def unable(model: nn.Module, task: Task) -> str:
    """Return in words why no pictures and texts can be encoded, or an empty string."""
    own = callable(getattr(task, "encode_images", None)) and callable(getattr(task, "encode_texts", None))
    host = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
    if own or (host and getattr(getattr(task, "options", None), "model", None)):
        return ""
    return f"it needs a dual encoder of pictures and texts; {type(model).__name__} is none"


@torch.no_grad()
def encode_images(model: Any, task: Any, pictures: Tensor) -> Tensor:
    """Return raw vectors of pictures [n, 3, side, side] from 0 to 1: float32 [n, width] on the CPU."""
    if callable(getattr(task, "encode_images", None)):
        return torch.as_tensor(task.encode_images(model, pictures)).float().cpu()
    mean, deviation, side = _normalisation(task)
    shaped = functional.interpolate(pictures, (side, side), mode="bilinear", antialias=True, align_corners=False)
    ready = (shaped - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    parts = [
        model.get_image_features(pixel_values=to_device(each, device_of(model))) for each in torch.split(ready, CALL)
    ]
    return torch.cat([_vectors(part, model) for part in parts])


@torch.no_grad()
def encode_texts(model: Any, task: Any, texts: Sequence[str]) -> Tensor:
    """Return raw vectors of texts: float32 [n, width] on the CPU."""
    if callable(getattr(task, "encode_texts", None)):
        return torch.as_tensor(task.encode_texts(model, list(texts))).float().cpu()
    tokenizer = load_tokenizer(host_folder(str(task.options.model)))
    found = []
    for start in range(0, len(texts), CALL):
        ids = tokenizer(list(texts[start : start + CALL]), padding=True, truncation=True, return_tensors="pt")
        given = {name: ids[name] for name in ("input_ids", "attention_mask") if name in ids}
        found.append(_vectors(model.get_text_features(**to_device(given, device_of(model))), model))
    return torch.cat(found)


def _vectors(output: Any, model: nn.Module) -> Tensor:
    pooled = getattr(output, "pooler_output", None)
    return (pooled if isinstance(pooled, Tensor) else main_tensor(output, model)).float().cpu()


def _normalisation(task: Any) -> tuple[Sequence[float], Sequence[float], int]:
    path = Path(host_folder(str(task.options.model))) / "preprocessor_config.json"
    config = Path(host_folder(str(task.options.model))) / "config.json"
    told = json.loads(path.read_text()) if path.is_file() else {}
    inner = json.loads(config.read_text()).get("vision_config", {}) if config.is_file() else {}
    return told.get("image_mean", MEAN), told.get("image_std", DEVIATION), int(inner.get("image_size", 224))


def read_picture(path: Path, box: Sequence[float] | None = None, side: int = 224) -> Tensor:
    """Return a picture as float32 [3, side, side] from 0 to 1, padded to a square with black.

    Args:
        box: left, top, width and height of an object; the cut starts 0.7 of each before it and is 1.7 of each long,
            as GeneCIS cuts.

    Raises:
        DataError: no picture is there, or none that can be read.
    """
    import numpy as np
    from PIL import Image

    try:
        picture = Image.open(path).convert("RGB")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no picture that can be read ({error})") from error
    if box is not None:
        picture = picture.crop(cut(box, picture.width, picture.height))
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest))
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    return torch.from_numpy(np.asarray(square.resize((side, side)), dtype=np.float32) / 255.0).permute(2, 0, 1)


def cut(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of GeneCIS's cut around a box: 0.7 before it, 1.7 from there on."""
    x, y, w, h = box
    left, top = max(0.0, x - 0.7 * w), max(0.0, y - 0.7 * h)
    return int(left), int(top), int(min(width, left + 1.7 * w)), int(min(height, top + 1.7 * h))
