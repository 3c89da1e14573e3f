"""Low-rank linear layers by feature mimicking: two thin layers that keep the directions outputs really take."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.calibration import Moments, output_moments, principal_axes, rank_for, recalibrate_batch_norm
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import Site, replace, require
from lessen.methods.weights._shared.conv1d import linearised
from lessen.stored.linears.low_rank import LowRankLinear
from lessen.task import Task


class LowRankLinears(ModuleMethod):
    """Replace y = W x + b by U_k (U_k^T W x) + b', with U_k the leading eigenvectors of the covariance of y.

    Source: atomic feature mimicking, AAAI 2023 and KDD 2024 (arXiv 2405.18146). Outputs of the original network are
    collected in one pass over the train split, in float64; the expected squared error is the sum of the dropped
    eigenvalues, and no affine map of rank k does better. A layer is replaced only where k (in + out) is less than
    in x out. Batch-norm statistics are recomputed after. Differences: the variant with an activation between the
    factors, which is another function and needs training, is left out, as is per-layer sensitivity search (AAFM).
    """

    card = Card(
        name="linear-low-rank",
        family="weights",
        summary="Split linear layers into two thin ones along the main directions of their outputs.",
        acts_on=(nn.Linear,),
        source="AAAI 2023 (AFM); KDD 2024, arXiv 2405.18146",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes", "macs"}),
    )
    rank: int | None = Field(None, ge=1, le=65536, description="rank of every layer; none: from energy")
    energy: float = Field(0.95, gt=0, le=1, description="share of output variance to keep, when no rank is given")
    calibration_batches: int = Field(200, ge=1, le=10**6, description="train batches to collect outputs from")
    fine_tune_epochs: int = Field(0, ge=0, le=1000, description="epochs of training after the replacement")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Collect, decompose and replace. Raises NothingMatchedError; TaskError when training is asked and absent."""
        model = linearised(model)
        sites = self.eligible(model, (nn.Linear,), context, self._reject, (LowRankLinear,))
        moments = output_moments(model, task, sites, self.calibration_batches)
        replaced = []
        for site, moment in zip(sites, moments, strict=True):
            made = self._split(site, moment, context)
            if made is not None:
                model = replace(model, site, made)
                replaced.append(site)
        require(replaced, self, model, context)
        recalibrate_batch_norm(model, task, self.calibration_batches)
        if self.fine_tune_epochs:
            retrain.fine_tune(model, task, context, epochs=self.fine_tune_epochs)
        return model

    def _reject(self, layer: Any) -> str | None:
        rank = self.rank or 1
        if not pays(layer, rank):
            return f"{layer.in_features} x {layer.out_features} gets no smaller at rank {rank}"
        return None

    def _split(self, site: Site, moments: Moments, context: Context) -> LowRankLinear | None:
        variances, axes = principal_axes(moments.covariance)
        rank = self.rank or rank_for(variances, self.energy)
        if moments.count < 2 or not pays(site.module, rank):
            needs = f"needs rank {rank}, at which it gets no smaller"
            why = needs if moments.count > 1 else f"calibration ran {moments.count} rows through it"
            context.findings.setdefault("skipped", {})[site.path] = why
            return None
        kept = float(variances[:rank].sum() / variances.sum().clamp(min=1e-300))
        context.findings.setdefault("layers", {})[site.path] = {"rank": rank, "energy": round(kept, 6)}
        return factorise(site.module, axes[:, :rank], moments.mean)


def pays(layer: nn.Linear, rank: int) -> bool:
    """Tell whether two factors of this rank hold fewer values than the layer does."""
    own = layer.in_features * layer.out_features + (layer.out_features if layer.bias is not None else 0)
    return rank * (layer.in_features + layer.out_features) + layer.out_features < own


@torch.no_grad()
def factorise(layer: nn.Linear, basis: torch.Tensor, mean: torch.Tensor) -> LowRankLinear:
    """Return the best affine map of rank k: basis [out, k] float64 orthonormal, mean [out] of the layer's output."""
    made = LowRankLinear(layer.in_features, layer.out_features, basis.shape[1])
    weight = layer.weight.double()
    bias = torch.zeros(layer.out_features, dtype=torch.float64) if layer.bias is None else layer.bias.double()
    made.down.weight.copy_(basis.t() @ weight)
    made.up.weight.copy_(basis)
    # the projection of the old bias and the mean that the projection would lose, in one vector
    made.up.bias.copy_(basis @ (basis.t() @ (bias - mean)) + mean)
    return made
