"""The step at which a checkpoint was taken: what its files say, then what its name says, never a loss or a score."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lessen.checkpoints.pickles import entries
from lessen.checkpoints.torch_files import TorchFile

_STEPS = (
    "step", "global_step", "global_steps", "iteration", "iter_num", "iter", "iterations", "num_steps", "num_updates",
    "current_step", "n_iter",
)  # fmt: skip
_EPOCHS = ("epoch", "current_epoch")
_INSIDE = ("trainer_state", "train_state", "trainer", "progress", "meta", "metadata", "state")
"""Parts of a checkpoint that trainers keep their counters in."""
_LARGEST = 1 << 53

_REAL = re.compile(r"\d+(?:\.\d+)?e[-+]\d+|\d+\.\d+", re.IGNORECASE)
_MARKED = re.compile(
    r"(?<![a-z])(?:global)?[-_]?(?:steps?|iter(?:ation)?s?|updates?)[-=_ .]*(\d+)(k?)(?![\da-z])"
    r"|(?<![\da-z])(\d+)(k?)[-_ ]?(?:steps?|iter(?:ation)?s?|updates?)(?![a-z])",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"([a-z]*)([-=_ .]*)(\d+)(k?)(?![\da-z])", re.IGNORECASE)
_SCORES = frozenset({
    "loss", "acc", "accuracy", "auc", "f1", "bleu", "rouge", "psnr", "ssim", "ppl", "perplexity", "score", "metric",
    "mse", "mae", "rmse", "map", "miou", "iou", "lr", "wd", "seed", "bs", "reward", "top", "err", "error",
})  # fmt: skip
_GLUED = frozenset({
    "e", "ep", "epoch", "i", "it", "iter", "s", "step", "ckpt", "checkpoint", "cp", "model", "net", "weights", "state",
    "snap", "snapshot", "save",
})  # fmt: skip
"""Words that a number may follow at once: the 40 of i40 is a step, the 50 of resnet50 is not."""


@dataclass(frozen=True)
class Told:
    """What files say of themselves: a step, or only an epoch."""

    step: int | None = None
    epoch: int | None = None


def step_in_name(name: str) -> int | None:
    """Return the step that the name of a file or folder tells, if it does: after a word like step, or its last number.

    Numbers with a point and those that follow the name of a score are no steps.
    """
    marked = step_marked(name)
    if marked is not None:
        return marked
    found = [
        _count(number, kilo)
        for word, between, number, kilo in _NUMBER.findall(_REAL.sub(" ", name))
        if word.lower() not in _SCORES and (between or not word or word.lower() in _GLUED)
    ]
    return found[-1] if found else None


def step_marked(name: str) -> int | None:
    """Return the number that a name calls a step or an iteration."""
    for number, kilo, other, other_kilo in _MARKED.findall(_REAL.sub(" ", name)):
        return _count(number or other, kilo or other_kilo)
    return None


def _count(number: str, kilo: str) -> int:
    return int(number) * (1000 if kilo else 1)


def told_by_torch(file: TorchFile) -> Told:
    """Return what the counters of a torch file say."""
    return _told(_mapping(file.tree), lambda value: _mapping(value), file.number)


def told_by_safetensors(file: Path) -> Told:
    """Return what the metadata of a safetensors file says; nothing if the file is no such file."""
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8).ljust(8, b"\xff"))
        if length > min(100 << 20, file.stat().st_size):
            return Told()
        try:
            metadata = json.loads(handle.read(length)).get("__metadata__", {})
        except (ValueError, AttributeError):
            return Told()
    return _told(metadata if isinstance(metadata, dict) else {}, lambda _: {}, _from_text)


def told_by_trainer(folder: Path) -> Told:
    """Return what the trainer_state.json of a Hugging Face Trainer says."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        return _told({"global_step": state["global_step"]}, lambda _: {}, lambda value: value)
    except (OSError, ValueError, KeyError, TypeError):
        return Told()


def _mapping(node: Any) -> dict[str, Any]:
    return {key: value for key, value in entries(node) if isinstance(key, str)}


def _from_text(value: Any) -> int | None:
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 17 else None


def _told(top: dict[str, Any], open_part: Callable[[Any], dict[str, Any]], number: Callable[[Any], int | None]) -> Told:
    parts = [top, *(open_part(top[key]) for key in _INSIDE if key in top)]
    return Told(_first(parts, _STEPS, number), _first(parts, _EPOCHS, number))


def _first(parts: Iterable[dict[str, Any]], keys: Iterable[str], number: Callable[[Any], int | None]) -> int | None:
    for part in parts:
        for key in keys:
            value = number(part[key]) if key in part else None
            if type(value) is int and 0 <= value < _LARGEST:
                return value
    return None
