"""Weight clustering: every weight of a layer becomes one of a few values, stored once, with packed indices."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import module_bytes, replace
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.few_bits import HALF_MAX
from lessen.methods.weights._shared.sparsified import CONVOLUTIONS
from lessen.sparsity.clusters import Shared, clustered
from lessen.sparsity.masking import masked
from lessen.sparsity.pattern import Pattern
from lessen.stored.base import StoredModule
from lessen.stored.linears.clustered import ClusteredConv, ClusteredLinear, ClusteredMatrix, clustered_bytes
from lessen.stored.linears.sparse import to_matrix
from lessen.task import Task


class WeightClustering(ModuleMethod):
    """Move the weights of each layer to the nearest of a few values, train the values, and store indices.

    Source: Han et al., "Deep Compression", ICLR 2016 (arXiv 1510.00149), as the tiny time-series Transformer uses it
    (arXiv 2303.08951): 16 values, equally spaced at first. `density` removes the smallest weights before, and zero is
    then a value of its own that no training moves. Differs from the papers: values move by k-means before they train;
    while they train each weight keeps its value; every eligible layer is clustered, where the code of the latter wraps
    the last one only; indices are packed, so that bytes are saved in memory and without an entropy coder, which
    `lessen.artifact.flat` adds. Biases, norms and embeddings stay. Storage with decoded compute: time is not saved.
    """

    card = Card(
        name="weight-clustering",
        family="weights",
        summary="Store each weight as the index of one of a few values of its layer.",
        acts_on=(nn.Linear, *CONVOLUTIONS),
        source="Han et al. 2016, arXiv 1510.00149; arXiv 2303.08951",
        claims=frozenset({"bytes"}),
    )
    clusters: int = Field(16, ge=2, le=256, description="different values of a layer; indices take log2 of them")
    density: float | None = Field(
        None, gt=0, lt=1, description="share of the weights that is not removed first; none: nothing is removed"
    )
    values: Literal["fp16", "fp32"] = Field("fp16", description="type of the values")
    steps: int = Field(50, ge=0, le=10_000, description="k-means steps at most; 0 leaves values equally spaced")
    fine_tune_epochs: int = Field(0, ge=0, le=1000, description="epochs in which the values train, and all else")
    min_weights: int = Field(64, ge=1, le=10**9, description="layers with fewer weights stay as they are")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible layer. Raises NothingMatchedError; TaskError when training is asked and absent."""
        model = linearised(model)
        sites = self.eligible(model, (nn.Linear, *CONVOLUTIONS), context, self._reject)
        forms = {}
        for site in sites:
            weight = to_matrix(site.module.weight.detach()).float()
            if self.density is not None:
                weight = weight * Pattern(self.density).mask(weight.abs())
            indices, book = clustered(weight, self.clusters, self.steps)
            forms[site.module] = Shared(_back(indices, site.module), book)
        if self.fine_tune_epochs:
            with masked(forms):
                retrain.fine_tune(model, task, context, epochs=self.fine_tune_epochs)
        for site in sites:
            form, layer = forms[site.module], site.module
            matrix = ClusteredMatrix.of(to_matrix(form.indices), form.values().detach(), self.values)
            model = replace(model, site, _stored(layer, matrix))
            weight = to_matrix(layer.weight.detach()).float()
            error, power = (matrix.dequantise() - weight).square().sum(), weight.square().sum()
            context.findings.setdefault("layers", {})[site.path] = {
                "error": round(float(error / power), 8) if float(power) else 0.0,
                "zeros": round(float((matrix.dequantise() == 0).float().mean()), 6),
            }
        return model

    def _reject(self, layer: Any) -> str | None:
        rows, columns = len(layer.weight), layer.weight[0].numel()
        if layer.weight.numel() < self.min_weights:
            return f"has {layer.weight.numel()} weights, fewer than min_weights {self.min_weights}"
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            return f"pads its input by {layer.padding_mode}, which the clustered form does not"
        bias = 4 * rows if layer.bias is not None else 0
        if clustered_bytes(rows, columns, self.clusters, self.values) + bias >= module_bytes(layer):
            return f"{self.clusters} values and their indices take no fewer bytes than it does now"
        if self.values == "fp16" and float(layer.weight.detach().abs().max()) > HALF_MAX:
            return "holds weights beyond 65504, which fp16 cannot; use values=fp32"
        return None


def _back(matrix: torch.Tensor, layer: Any) -> torch.Tensor:
    """Return a matrix of indices in the shape of a layer's weight."""
    sides = tuple(layer.weight.shape[2:])
    return matrix.view(len(matrix), *sides, -1).movedim(-1, 1).contiguous()


def _stored(layer: Any, matrix: ClusteredMatrix) -> StoredModule:
    if isinstance(layer, nn.Linear):
        return ClusteredLinear.around(layer, matrix)
    return ClusteredConv.around(layer, matrix)
