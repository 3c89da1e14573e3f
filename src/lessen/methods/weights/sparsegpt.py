"""SparseGPT: sparse linear layers whose removed weights are made good on calibration data, block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lessen.method import Card, Context
from lessen.methods.sites import Site
from lessen.methods.weights._shared.calibrated import Calibrated
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.error_feedback import Feedback
from lessen.methods.weights._shared.sparse_solving import remove_with_feedback
from lessen.methods.weights._shared.sparsified import AnyPattern
from lessen.stored.linears.sparse import SparseLinear
from lessen.task import Task


class SparseGPT(AnyPattern, Calibrated):
    """Remove the weights whose loss the others make good best, and let them: no training.

    Source: Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023
    (arXiv 2301.00774); with `values=int8` kept weights are rounded in the same sweep, as there. The curvature, the walk
    through blocks and its knobs are those of `gptq`; `hessian=output` uses the loss's curvature (OAC's, arXiv
    2405.15025), which the paper does not.
    Differs from the paper: without N:M each block of 128 inputs keeps the same share, as in its code; inputs that
    calibration never excites keep their largest weights, where the code sets them to zero. A model without Transformer
    blocks is calibrated in one pass. Linear layers of int8 values and int8 activations have a
    kernel (AVX-512 VBMI2); all others decode at a forward: bytes are saved, time is not.
    """

    card = Card(
        name="sparsegpt",
        family="weights",
        summary="Remove linear weights one column after another, losses made good by weights to come.",
        acts_on=(nn.Linear,),
        source="Frantar and Alistarh 2023, arXiv 2301.00774",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes"}),
    )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible layer. Raises NothingMatchedError; TaskError for an empty train split."""
        model = linearised(model)
        sites = self.eligible(model, (nn.Linear,), context, self.reject)
        model = self.calibrate(model, sites, task, context)
        self.remark(model, context)
        return model

    def rounded(self, site: Site, spread: Feedback, context: Context) -> SparseLinear:
        """Return the layer in its sparse form and record its error."""
        layer: Any = site.module
        scales = None
        if self.values == "int8":
            largest = layer.weight.detach().float().abs().amax(1) / 127.0
            scales = torch.where(largest > 0, largest, 1.0)
        weight, stays = remove_with_feedback(layer.weight, spread, self.kept, scales)
        made = self.made(site, weight, stays, context, scales)
        assert isinstance(made, SparseLinear)
        return made
