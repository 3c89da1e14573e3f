"""FDP: the head that finds words in pictures, folded to the numbers that it computes with."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import replace_everywhere
from lessen.retrieval.spotting import FocusedHead, FoldedHead
from lessen.task import Task


class FDP(ModuleMethod):
    """Fold the head that spots words: its score map to one row of numbers, its probe to one vector; nothing changes.

    Source: Zeng et al., ACM MM 2024, arXiv 2408.00441, whose head attends to the cells that look like text and adds a
    probe with one key. Three convolutions with nothing between them are one; attention to one key is a constant. What
    it is trained with - masks of text, likenesses to words an edit away - is in the loss of the task `words`; with
    `epochs` it is trained on that loss first. Differences: the published code keeps all blocks when it serves; no CLIP:
    any host whose head is a `lessen.retrieval.spotting.FocusedHead`.
    """

    card = Card(
        name="fdp",
        family="retrieval",
        summary="Fold a word-spotting head to the numbers it computes with; answers stay as they are.",
        acts_on=(FocusedHead,),
        source="Focus, Distinguish, and Prompt, Zeng et al. 2024, arXiv 2408.00441",
        claims=frozenset({"bytes"}),
    )
    epochs: int = Field(0, ge=0, le=10_000, description="epochs of training by the task's loss before the fold")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace every head. Raises NothingMatchedError; TaskError: the task cannot train for `epochs`."""
        found = self.parts(model, FocusedHead)
        if not found:
            raise self.nothing_matched(model)
        if self.epochs:
            retrain.train(model, task, context, self.epochs)
        for head in found:
            model = replace_everywhere(model, head, FoldedHead.of(head))
        return model
