"""Multi-granularity semantic revision: corrected own texts, clipped divergence, and pairs of tokens inside phrases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card
from lessen.methods.distil._shared.clipping import Clip, Limits, clipped_divergence
from lessen.methods.distil._shared.distilled import ACTS_ON, CLAIMS, NEEDS, Scene
from lessen.methods.distil._shared.divergences import divergence
from lessen.methods.distil._shared.language import LanguageDistilled, TokenHook
from lessen.methods.distil._shared.places import Places
from lessen.methods.distil._shared.spans import pairs, reader, span_loss
from lessen.train.taps import OUTPUT
from lessen.train.teachers import DistilHook


class SemanticRevision(LanguageDistilled):
    """Train on own texts with the worst word put right (SCRG), by a clipped divergence (DAC-KL) and a loss on phrases.

    Multi-Granularity Semantic Revision for Large Language Model Distillation (arXiv 2407.10068). The parts: a text that
    the student wrote is corrected at its worst word by the teacher's and continued from there; both models'
    probabilities are compared on the part between two limits that a small net learns; products of neighbouring
    probabilities are compared inside phrases. `task_weight` is the weight of the labels on the given texts. The method
    is exactly word-level distillation by forward KL with `on_policy: 0`, `clip: none` and `span_weight: 0`.

    The paper's equations were not at hand, so these are decisions of ours: the net reads the teacher's `top`
    probabilities, the student's at the same tokens and both entropies; classes beyond them share one gate; the limits
    are soft by 0.02 of rank; the kept mass never falls below `floor`, without which the net would keep one class and
    have no loss; `clip: fixed` keeps the first classes of `mass` together and is the control; the distance of products
    is that of their normalised forms; phrases are runs of words up to a mark or a word of a closed class, found in
    characters and mapped to tokens. A text is corrected once, when it is written; texts kept by `memory` are corrected
    ones.
    """

    card = Card(
        name="semantic-revision",
        family="distil",
        summary="Train a language model on its own corrected texts, on clipped probabilities and on phrases.",
        acts_on=ACTS_ON,
        source="arXiv 2407.10068",
        needs=NEEDS,
        claims=CLAIMS,
    )
    task_weight: float = Field(1.0, ge=0, le=1e6, description="factor on the task's own loss")
    on_policy: float = Field(1.0, ge=0, le=1, description="share of steps on texts that the student writes")
    correct: bool = Field(True, description="put the worst word of such a text right and write on from there")
    clip: Clip = Field("learned", description="limits of a small net, the classes of `mass` together, or all classes")
    mass: float = Field(0.95, gt=0, le=1, description="of the teacher, kept by clip: fixed")
    floor: float = Field(0.9, ge=0, le=1, description="of the teacher's mass, kept at least by clip: learned")
    top: int = Field(64, ge=1, le=4096, description="the teacher's likeliest tokens, which have gates of their own")
    span_weight: float = Field(1.0, ge=0, le=1e6, description="factor on the pairs inside phrases")

    def hook(self, scene: Scene) -> DistilHook:
        """Return the comparison."""
        return _Revision(scene, self)


class _Revision(TokenHook):
    def __init__(self, scene: Scene, method: SemanticRevision) -> None:
        super().__init__(scene, method)
        self.method, self.findings = method, scene.context.findings
        self.text: Callable[[int], str] | None = None
        self.kept = [0.0, 0]
        self.words = scene.teacher.ask(scene.batch)[OUTPUT].shape[-1]
        if method.span_weight:
            self.text = reader(scene.task, self.words)

    def start(self, model: nn.Module) -> None:
        """Make the net, and watch the student."""
        if self.method.clip == "learned":
            self.module = Limits(min(self.method.top, self.words))
        super().start(model)

    def recalled(self, model: nn.Module, batch: Any) -> tuple[Any, Places]:
        """Return a text of the student, corrected once."""
        if not self.method.correct:
            return super().recalled(model, batch)
        found = self.memory.recall()
        if found is None:
            batch, seen = self.writer.write(model, batch)
            student, teacher = self.asked(model, batch).detach(), self.teacher.ask(batch)[OUTPUT]
            batch, seen, _ = self.writer.corrected(model, batch, seen, student, teacher)
            found = batch, seen
            self.memory.keep(*found)
        return found

    def term(self, seen: Places, student: Tensor, teacher: Tensor, batch: Any) -> Tensor:  # noqa: ARG002
        """Return the clipped divergence and the loss on phrases, weighted."""
        method = self.method
        rows, wanted = seen.rows(student), seen.rows(teacher)
        if method.clip == "none":
            total = divergence(rows, wanted, "forward").mean()
        else:
            losses, kept = clipped_divergence(
                rows,
                wanted,
                seen.rows(seen.following),
                clip=method.clip,
                top=method.top,
                limits=self.module,
                mass=method.mass,
                floor=method.floor,
            )
            total = losses.mean()
            self.kept = [self.kept[0] + float(kept.mean()), self.kept[1] + 1]
        if self.text is not None:
            total = total + method.span_weight * span_loss(student, teacher, pairs(seen, self.text))
        return total

    def finish(self, model: nn.Module) -> None:
        """Stop watching, and tell how much of the teacher was kept."""
        super().finish(model)
        if self.kept[1]:
            self.findings["kept mass"] = self.kept[0] / self.kept[1]
