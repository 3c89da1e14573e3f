"""GKD: next-token probabilities of a teacher, on given texts and on texts that the student writes."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from lessen.method import Card
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Scene
from lessen.methods.distil._shared.divergences import Kind, divergence
from lessen.methods.distil._shared.language import LanguageDistilled, TokenHook
from lessen.methods.distil._shared.places import Places
from lessen.train.teachers import DistilHook


class GKD(LanguageDistilled):
    """Minimise a divergence of next-token probabilities; a share `on_policy` of steps is on the student's own texts.

    On-Policy Distillation of Language Models, ICLR 2024 (arXiv 2306.13649), Algorithm 1 and Eq. 1. The method is
    word-level knowledge distillation (arXiv 1606.07947) with `on_policy: 0` and `kind: forward`. `memory` keeps what
    was written and learns from it again, as DistiLLM does (arXiv 2402.03898), with a constant chance `fresh` to write
    anew where that paper raises the share of old texts when validation worsens. Gradients do not flow through the
    writing, as in the paper. Differences: a step is wholly on given or wholly on own texts, as in the paper, and its
    prompt is as long as the batch's shortest; `task_weight` adds the task's own loss on the given texts.
    """

    card = Card(
        name="gkd",
        family="distil",
        summary="Train a language model on a teacher's next-token probabilities, on given texts and on its own.",
        acts_on=ACTS_ON,
        source="ICLR 2024, arXiv 2306.13649",
        needs=NEEDS,
        claims=CLAIMS,
    )
    kind: Kind = Field("jsd", description="forward KL(teacher || student), reverse, or generalised Jensen-Shannon")
    beta: float = Field(0.5, gt=0, lt=1, description="weight of the teacher in the mixture of jsd")
    temperature: float = Field(1.0, gt=0, le=1000, description="divides the logits of both")
    on_policy: float = Field(0.5, ge=0, le=1, description="share of steps on texts that the student writes")

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison of tokens."""
        return _Tokens(scene, self)


class _Tokens(TokenHook):
    def __init__(self, scene: Scene, method: GKD) -> None:
        super().__init__(scene, method)
        self.method = method

    def term(self, seen: Places, student: Tensor, teacher: Tensor, batch: Any) -> Tensor:  # noqa: ARG002
        """Return the mean over judged places."""
        method = self.method
        rows = divergence(seen.rows(student), seen.rows(teacher), method.kind, method.beta, method.temperature)
        return rows.mean()
