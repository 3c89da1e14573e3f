"""Atomic feature mimicking for any host: linear layers and convolutions split along their outputs, within a budget."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.calibration import output_moments, principal_axes, rank_for, recalibrate_batch_norm
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import Site, replace, require
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.factoring import Directions, largest_rank, of_weight, ranks_within, split
from lessen.methods.weights._shared.sparsified import CONVOLUTIONS
from lessen.stored.linears.low_rank import LowRankLinear
from lessen.stored.linears.low_rank_conv import LowRankConv
from lessen.task import Task


class FeatureMimicking(ModuleMethod):
    """Split layers by the covariance of their outputs, share ranks out by a budget of bytes, and mimic the original.

    Source: atomic and global feature mimicking, "Compressing Transformers: Features Are Low-Rank, but Weights Are
    Not!", AAAI 2023, and "Unified Low-rank Compression Framework for Click-through Rate Prediction", KDD 2024 (arXiv
    2405.18146). The split of a linear layer is the singular value decomposition of the weight whitened by the
    covariance of its inputs. `mimic_epochs` train the small network to give the original's outputs on training inputs,
    whose labels only choose the epoch, the start included.
    Differs from the papers: a convolution becomes one to k channels and one of single points, by the covariance over
    positions; with `share`, ranks are those of least energy given up, summed over layers as shares of their own, where
    the paper measures each layer's effect on the network's output; mimicked are the network's final outputs.
    `directions=weights` is the decomposition of the weight alone, the control.
    """

    card = Card(
        name="feature-mimicking",
        family="weights",
        summary="Split linear layers and convolutions in two along their outputs' main directions, and mimic.",
        acts_on=(nn.Linear, *CONVOLUTIONS),
        source="AAAI 2023 (AFM, GFM); KDD 2024, arXiv 2405.18146",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes", "macs"}),
    )
    share: float | None = Field(None, gt=0, lt=1, description="share of the layers' bytes to keep, all together")
    rank: int | None = Field(None, ge=1, le=65536, description="rank of every layer")
    energy: float | None = Field(
        None, gt=0, le=1, description="share of each layer's output variance to keep; 0.95 where nothing else is said"
    )
    directions: Literal["outputs", "weights"] = Field(
        "outputs", description="of outputs on data, or of the weight alone"
    )
    calibration_batches: int = Field(200, ge=1, le=10**6, description="train batches to collect outputs from")
    mimic_epochs: int = Field(0, ge=0, le=1000, description="epochs of training towards the original's outputs")
    min_weights: int = Field(1024, ge=1, le=10**9, description="layers with fewer weights stay as they are")

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        given = [name for name in ("share", "rank", "energy") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each choose the ranks; give one")
        return self

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Collect, decompose, replace, train. Raises NothingMatchedError; BudgetError; TaskError."""
        original = copy.deepcopy(model).eval().requires_grad_(False) if self.mimic_epochs else None
        model = linearised(model)
        kinds: tuple[type[nn.Module], ...] = (nn.Linear, *CONVOLUTIONS)
        sites = self.eligible(model, kinds, context, self._reject, (LowRankLinear, LowRankConv))
        found = self._found(model, sites, task)
        replaced = []
        for site, each, rank in zip(sites, found, self._ranks(sites, found, context), strict=True):
            if rank is None:
                continue
            context.findings.setdefault("layers", {})[site.path] = {"rank": rank, "lost": round(each.lost(rank), 6)}
            model = replace(model, site, split(site.module, each, rank))
            replaced.append(site)
        require(replaced, self, model, context)
        recalibrate_batch_norm(model, task, self.calibration_batches)
        if original is not None:
            self._mimic(model, original, task, context)
        return model

    def _found(self, model: nn.Module, sites: Sequence[Site], task: Task) -> list[Directions]:
        if self.directions == "weights":
            return [of_weight(site.module) for site in sites]
        moments = output_moments(model, task, list(sites), self.calibration_batches)
        return [Directions(*principal_axes(moment.covariance), moment.mean) for moment in moments]

    def _ranks(self, sites: Sequence[Site], found: Sequence[Directions], context: Context) -> list[int | None]:
        if self.share is not None:
            return ranks_within(sites, found, self.share, self.card.name)
        chosen: list[int | None] = []
        for site, each in zip(sites, found, strict=True):
            rank = self.rank or rank_for(each.energies, self.energy or 0.95)
            if rank > largest_rank(site.module):
                context.findings.setdefault("skipped", {})[site.path] = (
                    f"needs rank {rank}, at which it gets no smaller"
                )
            chosen.append(rank if rank <= largest_rank(site.module) else None)
        return chosen

    def _mimic(self, model: nn.Module, original: nn.Module, task: Task, context: Context) -> None:
        def loss(student: nn.Module, batch: Any) -> Tensor:
            with torch.no_grad():
                wanted = task.forward(original, batch).float()
            error = (task.forward(student, batch).float() - wanted).square().mean()
            return error / wanted.var().clamp_min(1e-12)

        retrain.fine_tune(model, task.view(loss=loss), context, epochs=self.mimic_epochs)

    def _reject(self, layer: Any) -> str | None:
        if layer.weight.numel() < self.min_weights:
            return f"has {layer.weight.numel()} weights, fewer than min_weights {self.min_weights}"
        if getattr(layer, "groups", 1) != 1 or getattr(layer, "padding_mode", "zeros") != "zeros":
            return "is a convolution in groups, or one that pads otherwise than by zeros"
        if largest_rank(layer) < (self.rank or 1):
            rows, columns = layer.weight.flatten(1).shape
            return f"{columns} x {rows} gets no smaller at rank {self.rank or 1}"
        return None
