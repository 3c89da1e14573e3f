"""Wanda: weights whose size times the size of their input is least are removed, with no training and no solving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.errors import NonFiniteError
from lessen.method import Card, Context
from lessen.methods.calibration import run_through, watching
from lessen.methods.sites import Site, require
from lessen.methods.weights._shared.blocks import inside, stacks_of, turns
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.curvature import given_to
from lessen.methods.weights._shared.sparsified import AnyPattern
from lessen.task import Task


class Wanda(AnyPattern):
    """Keep, for each output, the weights with the largest |w| * (norm of the input over calibration data).

    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024 (arXiv
    2306.11695). Every output keeps the same share without N:M. Blocks are done in order, each on the outputs of those
    that are sparse already; layers outside the blocks stay. A model without Transformer blocks takes one pass as it
    was. Differs from the paper: nothing but the walk, which is that of every method here.
    """

    card = Card(
        name="wanda",
        family="weights",
        summary="Remove linear weights by their size times that of their input.",
        acts_on=(nn.Linear,),
        source="Sun et al. 2024, arXiv 2306.11695",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes"}),
    )
    calibration_batches: int = Field(32, ge=1, le=10**6, description="train batches to take inputs from")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible layer. Raises NothingMatchedError; TaskError for an empty train split."""
        model = linearised(model)
        sites = self.eligible(model, (nn.Linear,), context, self.reject)
        stacks = stacks_of(model)
        if stacks:
            sites = require(inside(stacks, sites, context), self, model, context)
            for turn in turns(model, stacks, sites, task, self.calibration_batches, context.log.progress):
                model = self._remove(model, turn.sites, input_norms(turn.sites, turn.all), context)
        else:
            norms = input_norms(sites, lambda: run_through(model, task, self.calibration_batches))
            model = self._remove(model, sites, norms, context)
        self.remark(model, context)
        return model

    def _remove(self, model: nn.Module, sites: Sequence[Site], norms: Sequence[Tensor], context: Context) -> nn.Module:
        for site, norm in zip(sites, norms, strict=True):
            weight = site.module.weight.detach()
            if not bool(norm.any()):
                context.findings.setdefault("not_calibrated", []).append(site.path)
                norm = torch.ones_like(norm)
            mask = self.kept.mask(weight.float().abs() * norm, by_row=True)
            model = self.put(model, site, weight, mask, context)
        return model


def input_norms(sites: Sequence[Site], run: Callable[[], Any]) -> list[Tensor]:
    """Return the norm of each input of each layer over all rows that `run` sends through it, float32 [in].

    Raises:
        NonFiniteError: inputs hold NaN or infinity; names the layer.
    """
    sums = [torch.zeros(site.module.in_features, device=site.module.weight.device) for site in sites]

    def hook_of(site: Site, total: Tensor) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            rows = given_to(arguments, keywords).detach().float().reshape(-1, len(total))
            if not bool(torch.isfinite(rows).all()):
                raise NonFiniteError(f"calibration data gave NaN or infinity to {site.path}; clean the train split")
            total.add_(rows.square().sum(0))

        return hook

    with watching([(s.module, hook_of(s, total)) for s, total in zip(sites, sums, strict=True)]), torch.no_grad():
        run()
    return [total.sqrt() for total in sums]
