"""IntactKV: a quantised language model that continues from the full-precision states of its first tokens."""

from __future__ import annotations

import time
from typing import Any

from pydantic import Field
from torch import nn

from lessen.decoding.kv_forward import PREFIX
from lessen.decoding.kv_layout import windows_of
from lessen.decoding.kv_stored import PrefixStates
from lessen.decoding.prefix import Prefix, prefix_of_model
from lessen.errors import InputError, TaskError
from lessen.method import Card, Context, Method
from lessen.methods.weights._shared.prefix_training import TrainedPrefix, train_prefix
from lessen.stored.base import StoredModule
from lessen.task import Task


class IntactKV(Method):
    """Keep the first tokens' keys, values and logits as the model had them before this recipe's first step.

    IntactKV, arXiv 2403.01241. Which tokens: those that all texts of the task start with (`language:prefix=bos`, `chat`
    for the whole of a chat's beginning, or a text); the same windows judge the model without the patch. `steps` trains
    the keys and values (+Cal): half the mean squared error of each layer's output, summed over layers, at judged
    positions of the train split, AdamW at a constant rate. Differences: both models run on every training window, where
    the paper keeps the full-precision outputs on disk; plain AdamW instead of a paged 8-bit one; there are no answers
    of an assistant in plain text, so that all judged positions count. Nothing gets smaller: the report judges quality.
    """

    card = Card(
        name="intactkv",
        family="weights",
        summary="Start every text from the full-precision states of its first tokens, trained further if asked.",
        acts_on=("blocks",),
        source="arXiv 2403.01241",
        claims=frozenset({"quality"}),
    )
    steps: int = Field(0, ge=0, le=100_000, description="training steps of the states; 160 in the paper, 0: none")
    accumulate: int = Field(16, ge=1, le=4096, description="batches of one step")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="of AdamW, constant")
    clip_norm: float = Field(0.3, gt=0, le=1000, description="largest norm of the gradient")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Compute the states on the model before the first step, and patch the given one.

        Raises:
            NothingMatchedError: no decoder whose cache is known, or one that has a prefix already.
            TaskError: texts of the task do not start alike.
            InputError: the first step's model is compact itself, or the prefix does not fit its context or window.
        """
        ids = self._ids(model, task)
        original: Any = context.original if context.original is not None else model
        compact = [path for path, module in original.named_modules() if isinstance(module, StoredModule)]
        if compact:
            raise InputError(
                f"intactkv needs the full-precision model, and {compact[0]} of the one given is compact already; put "
                "intactkv into one recipe with the steps that quantise"
            )
        prefix = prefix_of_model(original.eval(), ids)
        if self.steps:
            began = time.perf_counter()
            plug_in = TrainedPrefix(prefix)
            context.findings["loss"] = train_prefix(plug_in, model, original, task, context, self)
            context.train_seconds += time.perf_counter() - began
            prefix = plug_in.prefix()
        patch = PrefixStates.of(Prefix(prefix.ids, prefix.layers, prefix.logits))
        patch.attach(model)
        context.findings["tokens"] = len(ids)
        context.findings["bytes"] = {
            "keys and values": sum(part.numel() * part.element_size() for pair in prefix.layers for part in pair),
            "logits": prefix.logits.numel() * prefix.logits.element_size(),
        }
        return model

    def _ids(self, model: nn.Module, task: Task) -> list[int]:
        if PREFIX in model._modules:
            raise self.nothing_matched(model, "it has a prefix from an earlier step")
        try:
            windows_of(model)
        except InputError as error:
            raise self.nothing_matched(model, str(error)) from error
        ids = list(getattr(task, "opening", ()))
        if not ids:
            raise TaskError(
                f"intactkv keeps the tokens that all texts start with, and those of task {task.name!r} start with none "
                "in common; set its prefix (language:prefix=bos, or prefix=chat), which judges every model alike"
            )
        return ids
