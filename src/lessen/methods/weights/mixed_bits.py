"""Mixed widths: each linear layer as many bits as it is worth, within a budget of bytes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from lessen.errors import NothingMatchedError, TaskError
from lessen.method import Card, Context, Forecast
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import Site, module_bytes, state_bytes
from lessen.methods.weights._shared.curvature import Hessian
from lessen.methods.weights._shared.few_bits import WITH_MINIMUMS, Bits
from lessen.methods.weights._shared.grids import Ranges, quantise
from lessen.methods.weights._shared.knapsack import allocate, check_fits
from lessen.methods.weights._shared.sensitivity import by_loss, by_slopes
from lessen.methods.weights._shared.token_tables import TokenTable, token_tables
from lessen.methods.weights.gptq import GPTQ
from lessen.methods.weights.rtn import RTN
from lessen.stored.linears.group_quantized import layer_bytes
from lessen.task import Task


class MixedBits(ModuleMethod):
    """Measure what rounding each layer alone does at each width, and spend a budget of bytes where it saves the most.

    Source: mixed precision as an integer programme over the sensitivity of single layers, as in HAWQ-V3 (Yao et al.
    2021, arXiv 2011.10680). Layers are then rounded as `rtn` or `gptq` do.
    Differs from the paper: the programme is solved exactly by undominated states; harm is the rise of the task's loss
    under its empirical Fisher matrix, each change of a weight followed to the layer's own output, or the rise itself
    (`sensitivity`), in place of traces of the Hessian; harms of layers are added up as if they were independent; the
    budget is of bytes with scales, not of multiply-adds. Controls: `allocation=uniform` (one width, the widest that
    fits) and `random` (widths handed out by lot until nothing more fits).
    """

    card = Card(
        name="linear-mixed-bits",
        family="weights",
        summary="Give each linear layer the 2 to 8 bits that it is worth within a budget of bytes.",
        acts_on=(nn.Linear,),
        source="Yao et al. 2021, arXiv 2011.10680",
        needs=frozenset({"calibration", "gradients"}),
        claims=frozenset({"bytes"}),
    )
    later_knobs: ClassVar[frozenset[str]] = frozenset({"scale_bits", "hessian", "refit"})
    average: float = Field(4.0, ge=1, le=10, description="bits a weight that all layers take together, scales included")
    budget: int | None = Field(None, ge=1, le=2**50, description="bytes of all layers together, in place of average")
    widths: tuple[Bits, ...] = Field((2, 3, 4, 5, 6, 8), description="bits that a layer may take")
    allocation: Literal["exact", "uniform", "random"] = Field("exact", description="how bits are shared out")
    sensitivity: Literal["slopes", "loss"] = Field(
        "slopes", description="slopes: one backward pass a batch; loss: the model run for each layer and width"
    )
    rounding: Literal["rtn", "gptq"] = Field("rtn", description="how layers are rounded once they have their width")
    hessian: Hessian | None = Field(None, description="with rounding=gptq, see there; none: input")
    refit: int | None = Field(None, ge=0, le=20, description="with rounding=gptq, see there; none: 0")
    group: int | None = Field(
        64, ge=16, le=256, description="weights along the inputs that share a scale; none: the whole row"
    )
    scale_bits: Literal[4, 5, 6, 8] | None = Field(
        None, description="bits of a scale, and of a minimum, as parts of the row's largest; none: fp16"
    )
    symmetric: bool = Field(False, description="levels around zero, in place of a minimum for each group")
    ranges: Ranges = Field("minmax", description="range of a group: all of it, or narrowed where that errs less")
    activations: Literal["float", "int8"] = Field(
        "float", description="inputs as they come, or rounded to int8 group by group so that kernels multiply integers"
    )
    min_weights: int = Field(1024, ge=1, le=10**9, description="layers with fewer weights stay as they are")
    table_bits: Bits | None = Field(
        8, description="bits of a Transformer's token embedding and of the head over its rows; none: embeddings stay"
    )
    calibration_batches: int = Field(4, ge=1, le=10**6, description="train batches that sensitivity is measured on")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.rounding == "rtn" and (self.hessian is not None or self.refit is not None):
            raise ValueError("hessian and refit need rounding=gptq: rounding to nearest has no feedback")
        return self

    @field_validator("widths")
    @classmethod
    def _some(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("give at least one width, each once, such as [2, 3, 4]")
        return tuple(sorted(value))

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible layer.

        Raises:
            NothingMatchedError: no layer can be rounded.
            BudgetError: the budget is below the smallest size; names it.
            TaskError: an empty train split.
        """
        self.scope.check(path for path, _ in model.named_modules() if path)
        try:
            model, sites = self._rounder(self.widths[0], None).prepared(model, context)
        except NothingMatchedError as error:
            raise self.nothing_matched(model, str(error).partition("(")[2].rpartition(")")[0]) from error
        if not sites:  # `only` named the token embedding
            return model
        widths: list[list[int]] = [
            [b for b in self.widths if self._rounder(b, None).reject(s.module) is None] for s in sites
        ]
        sizes = [[self._bytes(s.module, b) for b in own] for s, own in zip(sites, widths, strict=True)]
        weights = sum(site.module.weight.numel() for site in sites)
        budget = self.budget or int(self.average * weights / 8)
        check_fits(sum(map(min, sizes)), budget, self.card.name)
        harms = self._harms(model, task, sites, widths, context)
        taken = self._shared_out(sizes, harms, widths, budget, context)
        chosen = {site.path: own[pick] for site, own, pick in zip(sites, widths, taken, strict=True)}
        total = sum(own[pick] for own, pick in zip(sizes, taken, strict=True))
        context.findings |= {
            "allocation": chosen, "bytes": total, "budget": budget, "bits_per_weight": round(8 * total / weights, 4),
            "harm": sum(own[pick] for own, pick in zip(harms, taken, strict=True)),
        }  # fmt: skip
        return self._round(model, chosen, task, context)

    def forecast(self, model: nn.Module, task: Task, context: Context) -> Forecast | None:  # noqa: ARG002
        """Return the bytes with the budget spent; which layer takes which width only the task's data can say."""
        rounder = self._rounder(self.widths[0], None)
        tables = token_tables(model, self.scope, context, scaled=True) if self.table_bits is not None else []
        holders = {s.module for t in tables for s in (t.table, *t.heads, *t.others, *([t.untied] if t.untied else []))}
        sites = rounder.candidates(model, (nn.Linear,), context, rounder.reject)
        sites = [site for site in sites if site.module not in holders]
        if not sites:
            return None
        now = sum(module_bytes(site.module) for site in sites)
        weights = sum(site.module.weight.numel() for site in sites)
        least = sum(self._bytes(site.module, min(self.widths)) for site in sites)
        spent = max(least, self.budget or int(self.average * weights / 8))
        saved = sum(self._saved_by(table, rounder) for table in tables)
        remark = "the whole budget; data say which layer takes which width"
        return Forecast(state_bytes(model) - now + spent - saved, remark, least / now)

    def _saved_by(self, found: TokenTable, rounder: RTN) -> int:
        """Return the bytes that rounding a token table, and a head with a matrix of its own, saves."""
        layer, bits = found.stand_in(), self.table_bits or 8
        after = layer_bytes(layer, bits, rounder.width(layer), self.symmetric or bits > WITH_MINIMUMS)
        return (module_bytes(found.table.module) - after) * (1 if found.untied is None else 2)

    def _rounder(self, bits: int, only: Sequence[str] | None) -> RTN:
        shared: dict[str, Any] = {
            "bits": bits, "group": self.group, "symmetric": self.symmetric, "ranges": self.ranges,
            "activations": self.activations, "min_weights": self.min_weights, "scale_bits": self.scale_bits,
        }  # fmt: skip
        if only is None:
            return RTN(**shared, table_bits=self.table_bits, only=self.only, skip=self.skip)
        return RTN(**shared, table_bits=None, only=tuple(only))

    def _bytes(self, layer: nn.Linear, bits: int) -> int:
        return layer_bytes(layer, bits, self._rounder(bits, None).width(layer), self.symmetric, self.scale_bits)

    def _rounded(self, layer: Any, bits: int) -> Tensor:
        weight = layer.weight.detach()
        grid = self._rounder(bits, None).grid_of(layer)
        return grid.values(quantise(weight, grid))

    def _harms(
        self, model: nn.Module, task: Task, sites: list[Site], widths: list[list[int]], context: Context
    ) -> list[list[float]]:
        if self.allocation != "exact":
            return [[0.0] * len(own) for own in widths]
        batches = list(itertools.islice(task.batches("train"), self.calibration_batches))
        if not batches:
            raise TaskError(f"task {task.name!r} has an empty train split: no calibration batches")
        measure = by_slopes if self.sensitivity == "slopes" else by_loss
        found = measure(model.eval(), task, sites, widths, batches, self._rounded, context.log.progress)
        context.findings["sensitivity"] = {
            site.path: {str(bits): float(f"{harm:.4g}") for bits, harm in zip(own, harms, strict=True)}
            for site, own, harms in zip(sites, widths, found, strict=True)
        }
        return found

    def _shared_out(
        self, sizes: list[list[int]], harms: list[list[float]], widths: list[list[int]], budget: int, context: Context
    ) -> list[int]:
        if self.allocation == "exact":
            choices = [list(zip(*pair, strict=True)) for pair in zip(sizes, harms, strict=True)]
            return allocate(choices, budget, self.card.name)
        if self.allocation == "random":
            return by_lot(sizes, budget, context.generator)
        for bits in reversed(self.widths):
            taken = [max((n for n, b in enumerate(own) if b <= bits), default=0) for own in widths]
            if sum(own[pick] for own, pick in zip(sizes, taken, strict=True)) <= budget:
                return taken
        return [0] * len(sizes)

    def _round(self, model: nn.Module, chosen: dict[str, int], task: Task, context: Context) -> nn.Module:
        for bits in sorted(set(chosen.values())):
            rounder: RTN | GPTQ = self._rounder(bits, [path for path, own in chosen.items() if own == bits])
            if self.rounding == "gptq":
                feedback = {"hessian": self.hessian or "input", "refit": self.refit or 0}
                rounder = GPTQ(**rounder.model_dump(), calibration_batches=self.calibration_batches, **feedback)
            inner = Context(seed=context.seed, log=context.log, device=context.device, original=context.original)
            model = rounder.apply(model, task, inner)
            for name in ("layers", "outputs"):
                context.findings.setdefault(name, {}).update(inner.findings.get(name, {}))
        return model


def by_lot(sizes: Sequence[Sequence[int]], budget: int, generator: torch.Generator) -> list[int]:
    """Return choices that chance makes, layer after layer in random order, of what fits; the rest is filled up."""
    taken, spent = [0] * len(sizes), sum(own[0] for own in sizes)
    for fill in (False, True):
        for number in torch.randperm(len(sizes), generator=generator).tolist():
            own, now = sizes[number], taken[number]
            fits = [pick for pick, size in enumerate(own) if spent - own[now] + size <= budget]
            drawn = int(torch.randint(len(fits), (1,), generator=generator))
            pick = fits[-1] if fill else fits[drawn]
            taken[number], spent = pick, spent - own[now] + own[pick]
    return taken
