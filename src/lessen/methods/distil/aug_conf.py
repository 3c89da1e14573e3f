"""AugConf: a weak teacher for a strong student, which is trusted more as training goes on."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lessen.method import Card
from lessen.methods.distil._shared.confidence import TrustHook
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Distilled, Scene
from lessen.methods.distil._shared.losses import soft_divergence
from lessen.train.teachers import DistilHook


class AugConf(Distilled):
    """Add (1 - a) T^2 KL(teacher || student) + a CE(student, its own class), with one a that rises to `ceiling`.

    Weak-to-Strong Generalization (arXiv 2312.09390), as the baseline of arXiv 2402.03749 has it: a rises linearly over
    the first `rise` of training and stays. `task_weight: 0` leaves the labels out. Difference from the former paper:
    the student's class is its most probable one for each example, not one above a threshold of the batch.
    """

    card = Card(
        name="aug-conf",
        family="distil",
        summary="Train a model on a weaker teacher, trusting itself more as training goes on.",
        acts_on=ACTS_ON,
        source="arXiv 2312.09390, arXiv 2402.03749",
        needs=NEEDS,
        claims=CLAIMS,
    )
    ceiling: float = Field(0.5, ge=0, le=1, description="largest weight of its own class")
    rise: float = Field(0.3, ge=0, le=1, description="share of training over which that weight rises from 0")
    temperature: float = Field(1.0, gt=0, le=1000, description="divides the logits of both in the divergence")

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison of answers."""
        return _Rising(scene, self)


class _Rising(TrustHook):
    def __init__(self, scene: Scene, method: AugConf) -> None:
        super().__init__(scene, method)
        self.method = method

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the sum of both parts, weighted."""
        method = self.method
        alpha = method.ceiling * (min(1.0, self.done / method.rise) if method.rise else 1.0)
        own = F.cross_entropy(student.float(), student.argmax(dim=1))
        return (1 - alpha) * soft_divergence(student, teacher, method.temperature) + alpha * own
