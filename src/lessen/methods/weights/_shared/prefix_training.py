"""Training the keys and values of a prefix, so that a quantised model's layers give what the full-precision ones do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lessen.architectures.find import find_parts
from lessen.architectures.loading import hugging_face
from lessen.decoding.prefix import Prefix
from lessen.decoding.view import cache_argument
from lessen.method import Context
from lessen.methods.weights._shared import grid_training
from lessen.task import Task
from lessen.train.device import device_of
from lessen.train.fit import fit
from lessen.train.settings import FitSettings

UNJUDGED = -100


class Knobs(grid_training.Knobs, Protocol):
    """How long and how fast, and how long a gradient may be."""

    @property
    def clip_norm(self) -> float: ...


class TrainedPrefix(nn.Module):
    """Keys and values of a prefix as parameters; its ids and logits stay."""

    def __init__(self, prefix: Prefix) -> None:
        super().__init__()
        self._given = prefix
        self.keys = nn.ParameterList(keys.clone() for keys, _ in prefix.layers)
        self.values = nn.ParameterList(values.clone() for _, values in prefix.layers)

    def prefix(self) -> Prefix:
        """Return the prefix with what is trained now."""
        return Prefix(self._given.ids, tuple(zip(self.keys, self.values, strict=True)), self._given.logits)


def train_prefix(
    plug_in: TrainedPrefix, model: Any, original: Any, task: Task, context: Context, knobs: Knobs
) -> dict[str, float]:
    """Train the parameters of `plug_in` in front of `model`, frozen; return the loss of a batch before and after.

    Raises:
        TaskError: the train split is empty.
    """
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(False)
    layers = [
        [part.module for part in find_parts(each, "decoder").stack.blocks] for each in (model, original)
    ]  # fmt: skip

    def loss(prefix: nn.Module, batch: Any) -> Tensor:
        assert isinstance(prefix, TrainedPrefix)
        return layer_errors(prefix.prefix(), (model, layers[0]), (original, layers[1]), *batch)

    example = next(iter(task.batches("train", seed=context.seed)), None)
    try:
        before = float(loss(plug_in, example).detach()) if example is not None else float("nan")
        fit(
            plug_in,
            batches=lambda number: task.batches("train", seed=context.seed * 1_000_003 + number - 1),
            loss=loss,
            validate=None,
            settings=FitSettings(
                steps=knobs.steps, optimizer="adamw", learning_rate=knobs.learning_rate, schedule="constant",
                clip_norm=knobs.clip_norm, accumulate=knobs.accumulate,
            ),
            seed=context.seed,
            log=context.log,
            device=device_of(model),
        )  # fmt: skip
        return {"before": before, "after": float(loss(plug_in, example).detach())}
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def layer_errors(
    prefix: Prefix, student: tuple[Any, list[Any]], teacher: tuple[Any, list[Any]], inputs: dict[str, Tensor],
    labels: Tensor,
) -> Tensor:  # fmt: skip
    """Return the sum over layers of half the mean squared error of their outputs at judged positions.

    Args:
        student, teacher: a model and its blocks; the student continues from `prefix`, the teacher reads all.
        inputs: `input_ids` int64 [B,T] that start with the prefix.
        labels: int64 [B,T], `UNJUDGED` where nothing is judged.
    """
    count, ids = len(prefix.ids), inputs["input_ids"].to(student[0].device)
    judged = labels[:, count:].to(ids.device) != UNJUDGED
    with torch.no_grad(), _outputs(teacher[1]) as right:
        type(teacher[0]).forward(teacher[0], input_ids=ids, use_cache=False)
    cache = hugging_face().DynamicCache(config=student[0].config.get_text_config(decoder=True))
    prefix.fill(cache, len(ids))
    given = {cache_argument(student[0]): cache, "use_cache": True}
    with torch.enable_grad(), _outputs(student[1]) as found:
        type(student[0]).forward(student[0], input_ids=ids[:, count:], **given)
    errors = (
        0.5 * (mine[judged] - other[:, count:][judged]).float().square().mean()
        for mine, other in zip(found, right, strict=True)
    )
    return torch.stack(list(errors)).sum()


@contextmanager
def _outputs(blocks: list[Any]) -> Iterator[list[Tensor]]:
    """Collect what blocks give while a model runs."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
