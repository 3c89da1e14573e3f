"""QARepVGG: convolutions trained as branches of which one alone has a norm, so that the merged one survives int8."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.modules import ModuleMethod
from lessen.methods.weights._shared.branched import Branches, branch, cannot_branch, merge
from lessen.task import Task


class QARepVGG(ModuleMethod):
    """Train each k x k convolution as k x k + 1 x 1 + input, and merge the three into one convolution.

    one    a norm behind the k x k branch alone; the host's own norm stands behind the sum (QARepVGG)
    each   a norm behind each branch (RepVGG): merged, its weights and its outputs spread so far that int8 loses points

    Sources: Chu et al. 2022, Make RepVGG Greater Again: A Quantization-aware Approach (arXiv 2212.01593); Ding et al.
    2021, RepVGG (arXiv 2101.03697). The model is built and trained anew, as there, or trained on where the task cannot
    build its like. Differences: any network's k x k convolutions, where its own norms and activations stand; without a
    norm of the host behind it the sum has none.
    """

    card = Card(
        name="qarepvgg",
        family="weights",
        summary="Train convolutions as branches that merge into one which rounds well to int8.",
        acts_on=(nn.Conv2d,),
        source="Chu et al. 2022, arXiv 2212.01593",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset(),
    )
    norms: Literal["one", "each"] = Field("one", description="norms: behind the k x k branch, or behind each branch")
    epochs: int | None = Field(None, ge=1, le=10_000, description="epochs at most; none: the task's own")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train and merge. Raises NothingMatchedError; TaskError where the task cannot train."""
        self.eligible(model, (nn.Conv2d,), Context(), cannot_branch)  # refuse before anything is built
        model = retrain.fresh(model, task, context)
        sites = self.eligible(model, (nn.Conv2d,), context, cannot_branch)
        model, made = branch(model, sites, self._branches, context.seed)
        retrain.train(model.train(), task, context, epochs=self.epochs)
        return merge(model.eval(), made)

    def _branches(self, layer: Any) -> nn.Module:
        other: Any = nn.BatchNorm2d if self.norms == "each" else lambda _channels: nn.Identity()
        return Branches(layer, nn.BatchNorm2d, other, other)
