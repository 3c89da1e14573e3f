"""Progressive gradient flow: training that removes weights little by little until N of every M are left."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import nn

from lessen.method import Card
from lessen.methods.sites import Site
from lessen.methods.weights._shared.nm_trained import NMTrained
from lessen.methods.weights._shared.sparsified import CONVOLUTIONS
from lessen.sparsity.hooks import Schedule
from lessen.sparsity.masking import Fading
from lessen.sparsity.schedules import Kind, Progress
from lessen.train.hooks import Hook


class NMProgressive(NMTrained):
    """Let removed weights fade (MdGf: linear, exponential), or tighten the pattern (SdGf: stepwise, geometric).

    Source: "Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers", 2024 (arXiv 2402.04744).
    The mask is made anew from the dense weights at every step. `straight_through` takes the gradient as the authors'
    code does, whole for every weight; without it, the default, removed weights get the share D that they still count
    for, as the text describes.
    Differs from the paper: it trains the given model on unless `from_scratch`; the rate of decay follows from the
    length of the training, so that D is 0 (linear) or 0.01 (exponential) when the last phase starts, in which the
    pattern is strict; frames are counted in steps, and the latest that has begun holds, so that a resumed training
    has the right one; convolutions have runs along their input channels; biases are used.
    """

    card = Card(
        name="nm-progressive",
        family="weights",
        summary="Train until N of every M weights are left, the others fading or the pattern tightening.",
        acts_on=(nn.Linear, *CONVOLUTIONS),
        source="Progressive Gradient Flow, arXiv 2402.04744",
        needs=frozenset({"training"}),
        claims=frozenset({"bytes"}),
    )
    schedule: Kind = Field("exponential", description="fade linearly or exponentially; tighten stepwise or at N/M")
    dense: float = Field(0.0, ge=0, le=0.9, description="share of the steps before anything is removed")
    fine: float = Field(0.2, ge=0.01, le=0.9, description="share of the steps under the strict pattern at the end")
    decay: float | None = Field(
        None, gt=0, le=1, description="c of the fading, a step; none: gone when the last phase starts"
    )
    straight_through: bool = Field(False, description="whole gradients for removed weights, as the authors' code")

    def forms(self, sites: Sequence[Site], steps: int) -> tuple[dict[nn.Module, nn.Module], tuple[Hook, ...]]:
        """Return fading masks and the hook that moves them."""
        progress = Progress(self.schedule, self.kept, steps, self.dense, self.fine, self.decay)
        forms = [Fading(self.kept, self.straight_through).to(site.module.weight.device) for site in sites]
        pairs = zip(sites, forms, strict=True)
        return {site.module: form for site, form in pairs}, (Schedule(forms, progress),)
