"""Tensors nested in a batch: mappings, tuples, named tuples, lists and data classes, one inside the other."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch in order."""
    if isinstance(batch, Tensor):
        yield batch
        return
    for value in _parts(batch):
        yield from tensors_of(value)


def _parts(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    if isinstance(batch, (tuple, list)):
        return list(batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return []


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch of the same form with `function` applied to each tensor; the given batch is left as it is."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, MutableMapping):  # a copy keeps what a class of its own knows, such as BatchEncoding
        made = copy.copy(batch)
        for key, value in batch.items():
            made[key] = map_tensors(value, function)
        return made
    values = [map_tensors(value, function) for value in _parts(batch)]
    if isinstance(batch, Mapping):
        return dict(zip(batch, values, strict=True))
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*values)
    if isinstance(batch, (tuple, list)):
        return type(batch)(values)
    if values:
        names = [field.name for field in dataclasses.fields(batch)]
        return dataclasses.replace(batch, **dict(zip(names, values, strict=True)))
    return batch


def count_rows(batch: Any) -> int:
    """Return the examples of a batch: the length of its first tensor that has an axis, 0 if it has none."""
    return next((len(tensor) for tensor in tensors_of(batch) if tensor.ndim), 0)


def count_tokens(batch: Any) -> int:
    """Return the tokens of a batch: what a 2-D `attention_mask` lets through, else the size of `input_ids`, else 0."""
    if isinstance(batch, Mapping) and isinstance(batch.get("input_ids"), Tensor):
        mask = batch.get("attention_mask")
        return int(mask.sum()) if isinstance(mask, Tensor) and mask.ndim == 2 else batch["input_ids"].numel()
    return max((count_tokens(value) for value in _parts(batch)), default=0)


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
