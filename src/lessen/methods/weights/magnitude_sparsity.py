"""Magnitude: the smallest weights are removed, with or without training after; the baseline of every sparse method."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.calibration import recalibrate_batch_norm
from lessen.methods.sites import Site
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.sparsified import CONVOLUTIONS, AnyPattern
from lessen.sparsity.masking import Fixed, masked
from lessen.stored.linears.sparse import from_matrix, to_matrix
from lessen.task import Task


class MagnitudeSparsity(AnyPattern):
    """Keep the largest weights of linear layers and convolutions, in one shot.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015 (arXiv
    1506.02626). Each layer keeps the same share, or all compete (`among=model`). What is left trains on under fixed
    masks for `fine_tune_epochs`. Differs from the paper: one round and no dropout adjustment; biases, norms and
    embeddings are never touched. Batch-norm statistics are recomputed where there are training data.
    Linear layers of int8 values and int8 activations have a kernel (AVX-512 VBMI2); all others decode at a forward:
    bytes are saved, time is not.
    """

    card = Card(
        name="magnitude-sparsity",
        family="weights",
        summary="Remove the smallest weights of linear layers and convolutions.",
        acts_on=(nn.Linear, *CONVOLUTIONS),
        source="Han et al. 2015, arXiv 1506.02626",
        claims=frozenset({"bytes"}),
    )
    among: Literal["layer", "model"] = Field("layer", description="which weights compete without N:M")
    fine_tune_epochs: int = Field(0, ge=0, le=1000, description="epochs of training under fixed masks")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible layer. Raises NothingMatchedError; TaskError when training is asked and absent."""
        model = linearised(model)
        sites = self.eligible(model, (nn.Linear, *CONVOLUTIONS), context, self.reject)
        masks = self._masks(sites)
        if self.fine_tune_epochs:
            forms = {
                site.module: Fixed(from_matrix(mask, tuple(site.module.weight.shape[2:])))
                for site, mask in zip(sites, masks, strict=True)
            }
            with masked(forms):
                retrain.fine_tune(model, task, context, epochs=self.fine_tune_epochs)
        for site, mask in zip(sites, masks, strict=True):
            model = self.put(model, site, to_matrix(site.module.weight.detach()), mask, context)
        if not self.fine_tune_epochs and any(True for _ in task.batches("train")):
            recalibrate_batch_norm(model, task, None)
        self.remark(model, context)
        return model

    def _masks(self, sites: list[Site]) -> list[Tensor]:
        scores = [to_matrix(site.module.weight.detach().abs().float()) for site in sites]
        if self.among == "layer" or self.kept.m:
            return [self.kept.mask(each) for each in scores]
        whole = self.kept.mask(torch.cat([each.flatten() for each in scores]).unsqueeze(0))
        parts = torch.split(whole[0], [each.numel() for each in scores])
        return [part.view_as(each) for part, each in zip(parts, scores, strict=True)]
