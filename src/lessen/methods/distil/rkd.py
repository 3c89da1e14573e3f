"""RKD: distances and angles between examples, as the teacher sees them."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from lessen.method import Card
from lessen.methods.distil._shared.compared import ComparedFeatures
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Scene
from lessen.methods.distil._shared.features import vectors
from lessen.methods.distil._shared.losses import angle_loss, distance_loss
from lessen.task import main_tensor
from lessen.train.taps import Outputs
from lessen.train.teachers import DistilHook, Teacher


class RKD(ComparedFeatures):
    """Add Huber losses between the distances of pairs and the angles of triples of examples, in both feature spaces.

    Relational Knowledge Distillation, CVPR 2019 (arXiv 1904.05068). Widths may differ and no map is learned.
    Difference: relations are those of the first `rows` of a batch, because there are rows^3 angles.
    """

    card = Card(
        name="rkd",
        family="distil",
        summary="Train a model so that distances and angles between examples are those of a teacher.",
        acts_on=ACTS_ON,
        source="CVPR 2019, arXiv 1904.05068",
        needs=NEEDS,
        claims=CLAIMS,
    )
    distance: float = Field(25.0, ge=0, le=1e6, description="factor on the distances of pairs")
    angle: float = Field(50.0, ge=0, le=1e6, description="factor on the angles of triples")
    rows: int = Field(64, ge=3, le=1024, description="examples of a batch that are related to one another")

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison of relations."""
        return _Relations(scene.teacher, scene.taps, self)


class _Relations(DistilHook):
    def __init__(self, teacher: Teacher, taps: tuple[str, ...], method: RKD) -> None:
        super().__init__(teacher, main_tensor, taps)
        self.method = method

    def distil(self, loss: Tensor, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:  # noqa: ARG002
        """Return the terms, weighted."""
        method = self.method
        own = vectors(student[self.taps[0]])[: method.rows]
        wanted = vectors(teacher[self.teacher.taps[0]])[: method.rows]
        relations = method.distance * distance_loss(own, wanted)
        if method.angle:
            relations = relations + method.angle * angle_loss(own, wanted)
        return method.task_weight * loss + method.weight * relations
