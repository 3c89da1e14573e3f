"""CRD: the student's view of an example is told apart from other examples by the teacher's, and the other way round."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card
from lessen.methods.distil._shared.compared import ComparedFeatures
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Scene, probe
from lessen.methods.distil._shared.features import vectors
from lessen.task import Task, main_tensor
from lessen.train.taps import Outputs
from lessen.train.teachers import DistilHook, Teacher


class CRD(ComparedFeatures):
    """Add a contrastive loss between embeddings of both features: one example together, `negatives` others apart.

    Contrastive Representation Distillation, ICLR 2020 (arXiv 1910.10699). A critic h = e / (e + N c), with
    e = exp(<g_s, g_t> / tau), says whether two embeddings are of one example; c is the mean of e over the first batch,
    as the published code estimates its constant, in which the size of the data set cancels. Differences: the negatives
    are the last `negatives` examples seen, in a queue, where the published code keeps a memory of the whole data set
    by row number, which batches do not carry; a negative may therefore be of the example's own class. The linear maps
    to embeddings are thrown away after training.
    """

    card = Card(
        name="crd",
        family="distil",
        summary="Train a model so that its features identify examples among a teacher's features of many.",
        acts_on=ACTS_ON,
        source="ICLR 2020, arXiv 1910.10699",
        needs=NEEDS,
        claims=CLAIMS,
    )
    weight: float = Field(0.8, ge=0, le=1e6, description="factor on the teacher's term")
    negatives: int = Field(1024, ge=1, le=1 << 20, description="other examples that each one is told apart from")
    width: int = Field(128, ge=1, le=1 << 16, description="width of the embeddings")
    temperature: float = Field(0.07, gt=0, le=1000, description="tau, divides the cosines")

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison of embeddings."""
        return _Contrast(scene.teacher, scene.taps, self, scene.task, scene.batch)


class Critic(nn.Module):
    """Embeddings of both sides, the queues of their last ones, and the constant c of each side."""

    queues: Tensor
    constants: Tensor
    place: Tensor

    def __init__(self, student: int, teacher: int, width: int, negatives: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.student, self.teacher = nn.Linear(student, width), nn.Linear(teacher, width)
        # buffers, so that a training which was killed continues with the same negatives
        self.register_buffer("queues", F.normalize(torch.randn(2, negatives, width), dim=2))
        self.register_buffer("constants", torch.zeros(2))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of features [B, student] and [B, teacher], summed over both directions."""
        own, wanted = F.normalize(self.student(student), dim=1), F.normalize(self.teacher(teacher), dim=1)
        # a negative of the student's embedding is the teacher's of another example, and the other way round
        loss = self._direction(own, wanted, self.queues[1].clone(), 0) + self._direction(
            wanted, own, self.queues[0].clone(), 1
        )
        self._push(own.detach(), wanted.detach())
        return loss

    def _direction(self, anchor: Tensor, positive: Tensor, negatives: Tensor, side: int) -> Tensor:
        together = (anchor * positive).sum(dim=1, keepdim=True) / self.temperature
        apart = anchor @ negatives.T / self.temperature
        if not bool(self.constants[side]):
            with torch.no_grad():
                self.constants[side] = torch.cat([together, apart], dim=1).exp().mean()
        chance = (len(negatives) * self.constants[side]).log()
        # log h = -softplus(log(N c) - log e), log(1 - h) = -softplus(log e - log(N c))
        return (F.softplus(chance - together).sum(dim=1) + F.softplus(apart - chance).sum(dim=1)).mean()

    @torch.no_grad()
    def _push(self, own: Tensor, wanted: Tensor) -> None:
        size = self.queues.shape[1]
        own, wanted = own[-size:], wanted[-size:]
        rows = (self.place + torch.arange(len(own), device=own.device)) % size
        self.queues[0, rows], self.queues[1, rows] = own, wanted
        self.place.copy_((self.place + len(own)) % size)


class _Contrast(DistilHook):
    parallel = False  # each process would fill a queue of its own rows

    def __init__(self, teacher: Teacher, taps: tuple[str, ...], method: CRD, task: Task, batch: Any) -> None:
        super().__init__(teacher, main_tensor, taps)
        self.method, self.task, self.batch = method, task, batch

    def start(self, model: nn.Module) -> None:
        """Make the critic for the widths that one batch shows, and watch the student."""
        own = vectors(probe(model, self.taps, self.task, self.batch)[self.taps[0]])
        wanted = vectors(self.teacher.ask(self.batch)[self.teacher.taps[0]])
        method = self.method
        self.module = Critic(own.shape[1], wanted.shape[1], method.width, method.negatives, method.temperature)
        super().start(model)

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:  # noqa: ARG002
        """Return both terms, weighted."""
        assert self.module is not None
        own, wanted = vectors(student[self.taps[0]]).float(), vectors(teacher[self.teacher.taps[0]]).float()
        with torch.autocast(own.device.type, enabled=False):
            contrast: Tensor = self.module(own, wanted)
        return self.method.task_weight * loss + self.method.weight * contrast
