"""Sequence-level KD: the student learns the texts that the teacher writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS
from lessen.methods.distil._shared.language import Speaking
from lessen.methods.distil._shared.writing import Writer
from lessen.task import Split, Task
from lessen.train.device import to_device
from lessen.train.teachers import Teacher, evaluating


class SequenceKD(Speaking):
    """Let the teacher continue the beginnings of training texts once, and train on what it wrote.

    Sequence-Level Knowledge Distillation, EMNLP 2016 (arXiv 1606.07947). The teacher needs no probabilities to show: a
    text is enough. Difference: the paper writes by beam search; here `sampling: 0` takes the likeliest word each time,
    and a higher one draws. `weight` and `task_weight` share the batches: of each `weight + task_weight`, that part is
    of the teacher's texts, the rest are the task's own.
    """

    card = Card(
        name="sequence-kd",
        family="distil",
        summary="Train a language model on texts that a teacher writes.",
        acts_on=ACTS_ON,
        source="EMNLP 2016, arXiv 1606.07947",
        needs=NEEDS,
        claims=CLAIMS,
    )
    sampling: float = Field(0.0, ge=0, le=100, description="temperature at which the teacher writes; 0: likeliest word")
    batches: int = Field(64, ge=1, le=1_000_000, description="training batches that the teacher continues, at most")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Write the texts, train on them and return the student.

        Raises:
            TaskError: the task cannot train, its batches hold no tokens, or there is nobody to learn from.
            ConfigError, ArtifactError: the teacher cannot be read.
            NonFiniteError: the teacher gave NaN or infinity.
        """
        batch = task.example_batch()
        master = self._master(model, task, context)
        student, settle = self._student(model, task, context)
        self._check(master, student, task, batch)
        Teacher(master, task.forward).ask(batch)  # what cannot teach is refused before anything is written
        self._compare(master, student, task, context)
        texts = list(self._texts(master, task, context))
        context.findings["batches written"] = len(texts)
        part = self.weight / (self.weight + self.task_weight) if self.weight else 0.0
        retrain.train(student, self.paced(task).view(batches=_mixed(task, texts, part)), context, epochs=self.epochs)
        settle()
        return student

    @torch.no_grad()
    def _texts(self, master: nn.Module, task: Task, context: Context) -> Iterator[Any]:
        writer = Writer(task, self.prompt, self.sampling, context.generator)
        settings = task.settings
        for count, batch in enumerate(task.batches("train", seed=context.seed)):
            if count == min(self.batches, settings.steps or settings.steps_per_epoch or self.batches):
                return
            context.log.progress("teacher writes", count, self.batches)
            with evaluating(master):
                made, _ = writer.write(master, to_device(batch, context.device))
            yield made


def _mixed(task: Task, texts: list[Any], part: float) -> Any:
    """Return `batches` of a view: of the train split the texts in an order by seed, the task's own among them."""

    def batches(split: Split, seed: int = 0) -> Iterator[Any]:
        if split != "train":
            yield from task.batches(split, seed)
            return
        generator = torch.Generator().manual_seed(seed)
        own = iter(task.batches("train", seed=seed))
        for place in torch.randperm(len(texts), generator=generator).tolist():
            theirs = float(torch.rand((), generator=generator)) < part
            mine = None if theirs else next(own, None)
            yield texts[place] if mine is None else mine

    return batches
