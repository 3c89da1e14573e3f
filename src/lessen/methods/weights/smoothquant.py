"""SmoothQuant: what makes inputs hard to quantise is moved into weights, exactly, before both become int8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.errors import NonFiniteError
from lessen.method import Card, Context
from lessen.methods.calibration import run_through, watching
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import Site, require
from lessen.methods.weights._shared.blocks import Turn, inside, stacks_of, turns
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.curvature import given_to, sharing
from lessen.methods.weights._shared.scaling import Source, fold, normalised, sources, wrap
from lessen.stored.linears.scaled_input import ScaledInput
from lessen.task import Task

FLOOR = 1e-5


class SmoothQuant(ModuleMethod):
    """Divide inputs by max|x|^a / max|w|^(1-a) and multiply the weights by it; outputs stay as they are.

    Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
    ICML 2023 (arXiv 2211.10438). Follow it with a step that makes activations int8, such as `linear-int8`.
    Differs from the paper: scales that what makes the inputs cannot take are stored in front of the layer (2 bytes an
    input) where `store` is set, else the layer is left alone; the output and down projections are smoothed too.
    """

    card = Card(
        name="smoothquant",
        family="weights",
        summary="Move outliers of activations into weights, so that both can be int8.",
        acts_on=(nn.Linear,),
        source="Xiao et al. 2023, arXiv 2211.10438",
        needs=frozenset({"calibration"}),
        claims=frozenset(),
    )
    strength: float = Field(0.5, ge=0, le=1, description="share of the outliers that goes into the weights")
    store: bool = Field(True, description="keep scales in front of a layer where nothing can take them")
    calibration_batches: int = Field(16, ge=1, le=10**6, description="train batches to take inputs from")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Scale each eligible layer. Raises NothingMatchedError; TaskError for an empty train split."""
        model = linearised(model)
        sites = self.eligible(model, (nn.Linear,), context, outside=(ScaledInput,))
        stacks = stacks_of(model)
        done = 0
        if stacks:
            sites = require(inside(stacks, sites, context), self, model, context)
            for turn in turns(model, stacks, sites, task, self.calibration_batches, context.log.progress):
                done += self._block(model, turn, context)
        else:
            peaks = largest([[site] for site in sites], lambda: run_through(model, task, self.calibration_batches))
            for site, peak in zip(sites, peaks, strict=True):
                model, count = self._scale(model, [site], None, peak, None, context)
                done += count
        if not done:
            raise self.nothing_matched(model, "nothing that makes inputs can take scales; set store=true")
        return model

    def _block(self, model: nn.Module, turn: Turn, context: Context) -> int:
        sets = sharing(turn.sites, turn.once)
        peaks = largest(sets, turn.all)
        origins = sources(turn.block, sets, turn.once)
        return sum(
            self._scale(model, members, source, peak, turn, context)[1]
            for members, source, peak in zip(sets, origins, peaks, strict=True)
        )

    def _scale(
        self, model: nn.Module, members: Sequence[Site], source: Source | None, peak: Tensor, turn: Turn | None,
        context: Context,
    ) -> tuple[nn.Module, int]:  # fmt: skip
        weights = torch.stack([site.module.weight.detach().float().abs().amax(0) for site in members]).amax(0)
        scales = normalised(_floored(peak) ** self.strength / _floored(weights) ** (1 - self.strength))
        taken = fold(members, source, scales, turn.answer) if turn is not None else None
        where = source.part.path if taken is not None and source is not None else "stored" if self.store else "nothing"
        for site in members:
            if where == "stored":
                model, _ = wrap(model, site, scales)
            context.findings.setdefault("scales", {})[site.path] = where
        return model, 0 if where == "nothing" else len(members)


def largest(sets: Sequence[Sequence[Site]], run: Callable[[], Any]) -> list[Tensor]:
    """Return max|x| of each input, float32 [in], of the first layer of each set over all that `run` sends through it.

    Raises:
        NonFiniteError: an input is NaN or infinite; names the layer.
    """
    found = [torch.zeros(members[0].module.in_features, device=members[0].module.weight.device) for members in sets]

    def hook_of(site: Site, into: Tensor) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = given_to(arguments, keywords)
            rows = given.detach().reshape(-1, given.shape[-1]).float()
            if not bool(torch.isfinite(rows).all()):
                raise NonFiniteError(
                    f"calibration data gave NaN or infinity to {site.path}; clean the train split first"
                )
            torch.maximum(into, rows.abs().amax(0), out=into)

        return hook

    hooks = [(members[0].module, hook_of(members[0], into)) for members, into in zip(sets, found, strict=True)]
    with watching(hooks), torch.no_grad():
        run()
    return found


def _floored(values: Tensor) -> Tensor:
    top = float(values.max())
    return values.clamp(min=top * FLOOR) if top > 0 else torch.ones_like(values)
