"""Random sampling KD: a few draws from the teacher's next-token probabilities in place of all of them."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.method import Card, Context
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Distilled, Scene
from lessen.methods.distil._shared.divergences import sampled_cross_entropy
from lessen.methods.distil._shared.language import Speaking
from lessen.methods.distil._shared.places import places
from lessen.task import Task, main_tensor
from lessen.train.sampled import DRAWS, SIZE, SampledTeacher
from lessen.train.taps import OUTPUT
from lessen.train.teachers import DistilHook, Teacher


class RandomSamplingKD(Speaking, Distilled):
    """Minimise the cross-entropy with `draws` tokens drawn from the teacher at each place.

    Sparse Logit Sampling, ACL 2025 (arXiv 2503.16870): the mean gradient is that of KL(teacher || student), which
    keeping the k largest probabilities does not give. `cache` keeps the draws on disk, at most 30 bytes a token, so
    that the teacher is asked once for each row. Differences: points are drawn at equal distances with one random shift,
    of smaller variance than independent draws, and always from the teacher's own probabilities, so that each draw
    weighs the same; the value of the loss lacks the teacher's entropy, which draws do not tell.
    """

    card = Card(
        name="random-sampling-kd",
        family="distil",
        summary="Train a language model on a few draws from a teacher's next-token probabilities, kept on disk.",
        acts_on=ACTS_ON,
        source="ACL 2025, arXiv 2503.16870",
        needs=NEEDS,
        claims=CLAIMS,
    )
    draws: int = Field(12, ge=1, le=30, description="draws a token")
    temperature: float = Field(1.0, gt=0, le=1000, description="divides the logits of both")

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison with draws."""
        return _Drawn(scene.teacher, self, scene.task)

    def _asked(self, master: nn.Module, task: Task, batch: Any, context: Context) -> Teacher:  # noqa: ARG002
        return SampledTeacher(
            master, task.forward, self.draws, self.temperature, context.generator, cache=self._cache(context)
        )


class _Drawn(DistilHook):
    def __init__(self, teacher: Teacher, method: RandomSamplingKD, task: Task) -> None:
        super().__init__(teacher, main_tensor)
        self.method, self.task = method, task

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:  # noqa: ARG002
        """Return the terms, weighted. Raises TaskError when the teacher has another vocabulary."""
        assert self._caught is not None
        student, found, seen = self._caught.take()[OUTPUT], self.teacher(batch), places(self.task, batch)
        method = self.method
        if int(found[SIZE][0]) != student.shape[-1]:
            raise TaskError(
                f"the teacher's vocabulary has {int(found[SIZE][0])} tokens, the student's {student.shape[-1]}: they "
                "cannot be compared token by token; give a teacher with the student's tokenizer"
            )
        logits = seen.rows(student)
        if method.temperature != 1.0:
            logits = logits / method.temperature
        ids = seen.rows(found[DRAWS])
        weights = torch.full(ids.shape, 1.0 / method.draws, device=ids.device)
        term = method.weight * method.temperature**2 * sampled_cross_entropy(logits, ids, weights).mean()
        return term + method.task_weight * loss if method.task_weight else term
