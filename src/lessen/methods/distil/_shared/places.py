"""Which places of a batch of token sequences are compared, and which token follows each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lessen.errors import TaskError
from lessen.task import Task
from lessen.train.nested import map_tensors

UNJUDGED = -100
"""Label of a token that is no target, as torch's cross-entropy has it."""


class Places(NamedTuple):
    """The places of a batch whose answers count."""

    following: Tensor
    """The token after each place, int64 [B, T]; any number where it is not judged."""
    judged: Tensor
    """bool [B, T]"""

    def rows(self, values: Tensor) -> Tensor:
        """Return the judged places of [B, T, ...] as rows; without a copy where all are."""
        flat, judged = values.flatten(0, 1), self.judged.reshape(-1)
        return flat if bool(judged.all()) else flat[judged]


def ids_of(task: Task, batch: Any) -> Tensor:
    """Return the tokens of a batch, int64 [B, T]. Raises TaskError where the model is called with none."""
    inputs = task.inputs(batch)
    if isinstance(inputs, Mapping):
        inputs = inputs.get("input_ids")
    elif isinstance(inputs, (tuple, list)):
        inputs = inputs[0] if inputs else None
    if not isinstance(inputs, Tensor) or inputs.ndim != 2 or inputs.is_floating_point():
        raise TaskError(f"task {task.name!r} does not give sequences of tokens, input_ids int64 [rows, tokens]")
    return inputs


def mask_of(task: Task, batch: Any) -> Tensor | None:
    """Return the attention mask of a batch, [B, T], or None."""
    inputs = task.inputs(batch)
    found = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return found if isinstance(found, Tensor) else None


def places(task: Task, batch: Any) -> Places:
    """Return the places that the task judges: padding and tokens labelled `UNJUDGED` are left out.

    A target of the tokens' own shape holds each token at its own place, as Hugging Face models want it, or at the
    place before, where it is predicted; which of the two is seen from the tokens. Every token that an `attention_mask`
    lets through follows the one before it where there is no such target.

    Raises:
        TaskError: the batch holds no token sequences, or nothing in it is judged.
    """
    ids, target, mask = ids_of(task, batch), task.target(batch), mask_of(task, batch)
    ahead = False
    if target.shape == ids.shape and not target.is_floating_point():
        target = target.to(ids.device)
        known = target != UNJUDGED
        ahead = not bool((target[known] == ids[known]).all())
        following, judged = (target, known) if ahead else (_shifted(target, UNJUDGED), _shifted(known, False))
    else:
        following, judged = _shifted(ids, 0), _shifted(torch.ones_like(ids, dtype=torch.bool), False)
    if mask is not None:
        judged = judged & mask.bool()
        if not ahead:
            judged = judged & _shifted(mask.bool(), False)
    if not bool(judged.any()):
        raise TaskError(f"task {task.name!r} gives a batch in which no token is judged; check its labels")
    return Places(following, judged)


def _shifted(values: Tensor, last: Any) -> Tensor:
    """Return [B, T] with every value one place earlier, and `last` in the last place."""
    return torch.cat([values[:, 1:], torch.full_like(values[:, :1], last)], dim=1)


def written(task: Task, batch: Any, ids: Tensor, start: Tensor, valid: Tensor) -> tuple[Any, Places]:
    """Return the batch with other tokens, and the places in it that predict those from `start` on.

    Args:
        ids: int64 [B, T] of the batch's shape.
        start: int64 [B], the first token of each row that counts.
        valid: bool [B, T], False for what stands after a row's end.

    Raises:
        TaskError: the tokens that the model is called with are no tensor of the batch.
    """
    old, target, mask = ids_of(task, batch), task.target(batch), mask_of(task, batch)
    counts = valid & (torch.arange(ids.shape[1], device=ids.device) >= start[:, None])
    swapped: dict[int, Tensor] = {}
    if target.shape == ids.shape and not target.is_floating_point():
        labels = ids.masked_fill(~counts, UNJUDGED)
        known = target != UNJUDGED
        own = bool((target[known] == old[known]).all())
        swapped[id(target)] = labels if own else _shifted(labels, UNJUDGED)
    swapped[id(old)] = ids
    if mask is not None:
        swapped[id(mask)] = valid.to(mask.dtype)
    met: set[int] = set()

    def other(tensor: Tensor) -> Tensor:
        met.add(id(tensor))
        return swapped.get(id(tensor), tensor)

    made = map_tensors(batch, other)
    if id(old) not in met:
        raise TaskError(f"task {task.name!r} makes its tokens anew at each call; give batches that hold input_ids")
    return made, Places(_shifted(ids, 0), _shifted(counts, False))
