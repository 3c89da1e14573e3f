"""AWQ: inputs that matter are scaled up before weights are rounded, by as much as the layer's output gains from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods.calibration import run_through
from lessen.methods.sites import Site, replace, require
from lessen.methods.weights._shared.blocks import Turn, inside, stacks_of, turns
from lessen.methods.weights._shared.curvature import Curvature, curvatures, sharing
from lessen.methods.weights._shared.error_feedback import output_error
from lessen.methods.weights._shared.few_bits import FewBits
from lessen.methods.weights._shared.grids import quantise
from lessen.methods.weights._shared.scaling import Source, fold, normalised, sources, wrap
from lessen.stored.linears.coded_scales import of_grid
from lessen.task import Task

FLOOR = 1e-5
"""Least magnitude of an input, as a share of the greatest, that a scale is made of."""


class AWQ(FewBits):
    """Multiply each input's weights by magnitude^a, divide the inputs by it, and round to nearest.

    Source: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", MLSys 2024
    (arXiv 2306.00978). The exponent a is searched on `grid` steps from 0 (plain rounding) to 1 for each set of layers
    that read one tensor, by the squared error of their outputs on calibration data. Scales go into what makes the
    inputs (a norm, the value projection, the up projection) where the block then answers as before; elsewhere they are
    stored in front of the layer, 2 bytes an input.
    Differs from the paper: an input's magnitude is its root mean square, not its mean; the error is of the layers' own
    outputs by their second moment, for all calibration tokens at once, not of the whole block's on a sample; scales are
    shared by inputs that one row makes (grouped queries), where the paper leaves such layers unscaled; the separate
    search for clipped ranges is left to `ranges`, which looks at weights only. Blocks see those before them quantised.
    """

    card = Card(
        name="awq",
        family="weights",
        summary="Round linear weights to 2 to 8 bits after scaling up the inputs that matter.",
        acts_on=(nn.Linear,),
        source="Lin et al. 2024, arXiv 2306.00978",
        needs=frozenset({"calibration"}),
        claims=frozenset({"bytes"}),
    )
    calibration_batches: int = Field(16, ge=1, le=10**6, description="train batches to take inputs from")
    grid: int = Field(20, ge=1, le=1000, description="exponents tried between 0 and 1")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace each eligible layer. Raises NothingMatchedError; TaskError for an empty train split."""
        model, sites = self.prepared(model, context)
        stacks = stacks_of(model)
        if sites and stacks:
            sites = require(inside(stacks, sites, context), self, model, context)
            for turn in turns(model, stacks, sites, task, self.calibration_batches, context.log.progress):
                self._block(model, turn, context)
        elif sites:
            alone = [[site] for site in sites]
            found = curvatures(alone, lambda: run_through(model, task, self.calibration_batches))
            for members, curvature in zip(alone, found, strict=True):
                model, scaled = self._scale(model, members, None, curvature, None, context)
                model = self._round(model, members, scaled, context)
        self.remark(context)
        return model

    def _block(self, model: nn.Module, turn: Turn, context: Context) -> None:
        sets = sharing(turn.sites, turn.once)
        found = curvatures(sets, turn.all)
        origins = sources(turn.block, sets, turn.once)
        # the last called first: rows that a later layer's scales divide are then searched as they will be rounded
        scaled = [
            self._scale(model, members, source, curvature, turn, context)[1]
            for members, source, curvature in reversed(list(zip(sets, origins, found, strict=True)))
        ]
        for members, own in zip(reversed(sets), scaled, strict=True):
            self._round(model, members, own, context)

    def _scale(
        self, model: nn.Module, members: Sequence[Site], source: Source | None, curvature: Curvature,
        turn: Turn | None, context: Context,
    ) -> tuple[nn.Module, list[Site]]:  # fmt: skip
        """Scale layers that read the same inputs; return the model and where the layers are now."""
        total = curvature.total
        exponent, scales = self.search([site.module for site in members], total, source)
        where = "nothing"
        now = list(members)
        if exponent:
            taken = fold(members, source, scales, turn.answer) if turn is not None else None
            if taken is not None and source is not None:
                where = source.part.path
            else:
                now = []
                for site in members:
                    model, inner = wrap(model, site, scales)
                    now.append(inner)
                where = "stored"
        for site in members:
            context.findings.setdefault("scales", {})[site.path] = {"exponent": exponent, "into": where}
        return model, now

    def search(self, layers: Sequence[Any], curvature: Tensor, source: Source | None) -> tuple[float, Tensor]:
        """Return the exponent with the least output error and its scales [in]; 0 and ones where none is better.

        Args:
            curvature: the sum of x x^T over the layers' common inputs, [in, in].
        """
        magnitude = curvature.diagonal().clamp(min=0).sqrt()
        floor = float(magnitude.max()) * FLOOR
        best, chosen = (0.0, torch.ones_like(magnitude)), self._error(layers, torch.ones_like(magnitude), curvature)
        if not floor:
            return best
        for step in range(1, self.grid + 1):
            scales = normalised(magnitude.clamp(min=floor) ** (step / self.grid))
            scales = source.tied(scales) if source is not None else scales
            error = self._error(layers, scales, curvature)
            if error < chosen:
                best, chosen = (round(step / self.grid, 6), scales), error
        return best

    def _error(self, layers: Sequence[Any], scales: Tensor, curvature: Tensor) -> float:
        total = 0.0
        for layer in layers:
            weight = layer.weight.detach().float()
            scaled = weight * scales
            grid = self.grid_of(layer, scaled)
            total += output_error(grid.values(quantise(scaled, grid)) / scales - weight, curvature)
        return total

    def _round(self, model: nn.Module, members: Sequence[Site], scaled: Sequence[Site], context: Context) -> nn.Module:
        for site, inner in zip(members, scaled, strict=True):
            layer: Any = inner.module
            grid = self.grid_of(layer)
            made = of_grid(layer, grid, quantise(layer.weight, grid), self.activations)
            self.record(Site(site.paths, layer), made, context)
            model = replace(model, inner, made)
        return model
