"""SR-STE: training under a mask that is made anew at each step, removed weights pulled to zero."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import nn

from lessen.method import Card
from lessen.methods.sites import Site
from lessen.methods.weights._shared.nm_trained import NMTrained
from lessen.methods.weights._shared.sparsified import CONVOLUTIONS
from lessen.sparsity.masking import Pulled
from lessen.train.hooks import Hook


class SRSTE(NMTrained):
    """Multiply by the masked weights, give every weight the gradient of its place, and pull the removed ones to zero.

    Source: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021 (arXiv
    2102.04010). `pull=0` is the plain straight-through estimator. Differs from the paper: it trains the given model on
    unless `from_scratch`, and the optimiser is the task's, where the pull is a part of the gradient as in its code.
    """

    card = Card(
        name="sr-ste",
        family="weights",
        summary="Train with N of every M weights, the removed ones pulled to zero.",
        acts_on=(nn.Linear, *CONVOLUTIONS),
        source="Zhou et al. 2021, arXiv 2102.04010",
        needs=frozenset({"training"}),
        claims=frozenset({"bytes"}),
    )
    pull: float = Field(2e-4, ge=0, le=1, description="strength with which removed weights are pulled to zero")

    def forms(self, sites: Sequence[Site], steps: int) -> tuple[dict[nn.Module, nn.Module], tuple[Hook, ...]]:  # noqa: ARG002
        """Return masks that pull."""
        return {site.module: Pulled(self.kept, self.pull) for site in sites}, ()
