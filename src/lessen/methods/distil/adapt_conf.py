"""AdaptConf: a weak teacher for a strong student; on each example the surer of both is followed."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from lessen.method import Card
from lessen.methods.distil._shared.confidence import TrustHook
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Distilled, Scene
from lessen.methods.distil._shared.losses import row_divergence, trust
from lessen.train.teachers import DistilHook


class AdaptConf(Distilled):
    """Add (1 - a) T^2 KL(teacher || student) + a CE(student, its own class), with a of each example by who is surer.

    Vision Superalignment (arXiv 2402.03749). a is in (0, 1/2]: the teacher keeps at least half of the weight; a is 1/2
    where both agree and near 0 where the student finds the teacher's class very unlikely. The published classification
    keeps the labels at full weight; `task_weight: 0` is weak-to-strong without labels. Its few-shot and noisy-label
    forms let a rise over the first quarter of training: `rise: 0.25`. The gradient of a is stopped, as there.
    """

    card = Card(
        name="adapt-conf",
        family="distil",
        summary="Train a model on a weaker teacher, trusting on each example whichever is surer.",
        acts_on=ACTS_ON,
        source="arXiv 2402.03749",
        needs=NEEDS,
        claims=CLAIMS,
    )
    sharpness: float = Field(0.5, gt=0, le=1000, description="T of the paper: differences of confidence are divided by")
    temperature: float = Field(1.0, gt=0, le=1000, description="divides the logits of both in the divergence")
    rise: float = Field(0.0, ge=0, le=1, description="share of training over which trust in itself rises from 0")

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison of answers."""
        return _Surer(scene, self)


class _Surer(TrustHook):
    def __init__(self, scene: Scene, method: AdaptConf) -> None:
        super().__init__(scene, method)
        self.method = method

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean of both parts."""
        method = self.method
        alpha, own = trust(student, teacher, method.sharpness)
        if method.rise:
            alpha = alpha * min(1.0, self.done / method.rise)
        return ((1 - alpha) * row_divergence(student, teacher, method.temperature) + alpha * own).mean()
