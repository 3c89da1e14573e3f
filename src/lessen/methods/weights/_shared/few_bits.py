"""Knobs and reasons that every few-bit method of linear layers shares, and what it records of each layer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import nn

from lessen.method import Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import Site, module_bytes
from lessen.methods.weights._shared.grids import Ranges
from lessen.stored.linears.group_quantized import GroupQuantizedLinear, layer_bytes, row_parts

HALF_MAX = 65_504.0
FINEST = 2.0**-20
"""Least step that fp16 scales hold to some digits."""
ON_GRID = 0.01
"""Steps that a weight may lie off its level and still count as on the grid: rounding of floats, never of a weight."""


class FewBits(ModuleMethod):
    """Base of methods that leave `GroupQuantizedLinear` layers; answers keep the type of a layer's inputs."""

    bits: Literal[2, 3, 4, 5, 6, 8] = Field(4, description="bits of a weight")
    group: int | None = Field(
        64, ge=32, le=256, description="weights along the inputs that share a scale; none: the whole row"
    )
    symmetric: bool = Field(False, description="levels around zero, in place of a minimum for each group")
    ranges: Ranges = Field("minmax", description="range of a group: all of it, or narrowed where that errs less")
    min_weights: int = Field(1024, ge=1, le=10**9, description="layers with fewer weights stay as they are")

    def width(self, layer: nn.Linear) -> int:
        """Return the inputs of a group in this layer."""
        return min(self.group or layer.in_features, layer.in_features)

    def reject(self, layer: Any) -> str | None:
        """Say why a layer stays as it is, or None."""
        if layer.weight.numel() < self.min_weights:
            return f"has {layer.weight.numel()} weights, fewer than min_weights {self.min_weights}"
        if layer_bytes(layer, self.bits, self.width(layer), self.symmetric) >= module_bytes(layer):
            return f"{self.bits} bit codes with their scales take no fewer bytes than it does now"
        largest = float(layer.weight.detach().abs().max())
        if largest > HALF_MAX:
            return "holds weights beyond 65504, which fp16 scales cannot"
        if 0 < largest < FINEST * 2 ** (self.bits - 1):
            return f"holds weights of at most {largest:.1e}, finer than fp16 scales can tell apart"
        return None

    def record(self, site: Site, made: GroupQuantizedLinear, context: Context) -> None:
        """Keep the squared error of a layer as a share of its squared weights, and name dead and lossless layers."""
        error, power, on_grid = compared(site.module, made)
        findings = context.findings
        findings.setdefault("layers", {})[site.path] = round(error / power, 8) if power else 0.0
        if not power:
            findings.setdefault("dead", []).append(site.path)
        elif on_grid:
            findings.setdefault("lossless", []).append(site.path)
        if made.in_features % made.group:
            findings.setdefault("short_group", {})[site.path] = made.in_features % made.group

    def remark(self, context: Context) -> None:
        """Warn where weights lay on the grid that was asked for, and where a layer is all zero."""
        layers, lossless = context.findings["layers"], context.findings.get("lossless", [])
        dead = context.findings.get("dead", [])
        if lossless:
            where = "groups of " + str(self.group) if self.group else "whole rows"
            context.findings["warning"] = (
                f"lossless, nothing to learn: {len(lossless)} of {len(layers)} layers, such as {lossless[0]}, lie on a "
                f"grid of {self.bits} bits for {where} already; take fewer bits or larger groups"
            )
            context.log.note(context.findings["warning"])
        if dead:
            context.log.note(f"{len(dead)} dead layers hold only zeros, such as {dead[0]}")


def compared(layer: Any, made: GroupQuantizedLinear) -> tuple[float, float, bool]:
    """Return squared error and squared weights of a layer, and whether all its weights lie on their levels."""
    error = power = 0.0
    on_grid = True
    for part in row_parts(made.out_features, made.in_features):
        weight = layer.weight[part].detach().float()
        away = made.decoded(part) - weight
        error += float(away.double().square().sum())
        power += float(weight.double().square().sum())
        scales = made.grid.rows(part).scales.float().repeat_interleave(made.group, 1)[:, : made.in_features]
        on_grid = on_grid and bool((away.abs() <= ON_GRID * scales).all())
    return error, power, on_grid
