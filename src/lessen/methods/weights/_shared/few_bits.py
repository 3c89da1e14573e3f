"""Knobs and reasons that every few-bit method of linear layers shares, and what it records of each layer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from lessen.method import Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import Site, module_bytes, replace, require
from lessen.methods.weights._shared.conv1d import linearised
from lessen.methods.weights._shared.grids import Ranges, Zeros, fit_grid, quantise
from lessen.methods.weights._shared.token_tables import TokenTable, row_factor, token_tables
from lessen.stored.linears.decoded import DecodedLinear, row_parts
from lessen.stored.linears.group_grid import GroupGrid
from lessen.stored.linears.group_quantized import GroupQuantizedLinear, layer_bytes
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.group_quantized import GroupQuantizedEmbedding

Bits = Literal[2, 3, 4, 5, 6, 8]

WITH_MINIMUMS = 6
"""Most bits of a table that has minimums; wider ones are symmetric, for GGUF has no block of 8 bits with minimums."""
HALF_MAX = 65_504.0
FINEST = 2.0**-20
"""Least step that fp16 scales hold to some digits."""
ON_GRID = 0.01
"""Steps that a weight may lie off its level and still count as on the grid: rounding of floats, never of a weight."""


class FewBits(ModuleMethod):
    """Base of methods that leave `GroupQuantizedLinear` layers; answers keep the type of a layer's inputs.

    Conv1D layers of transformers become linear ones first. A Transformer's token embedding is rounded to nearest at
    `table_bits`, and a head that is tied to it reads the same codes: they are stored once.
    """

    later_knobs: ClassVar[frozenset[str]] = frozenset({"scale_bits"})
    bits: Bits = Field(4, description="bits of a weight")
    group: int | None = Field(
        64, ge=16, le=256, description="weights along the inputs that share a scale; none: the whole row"
    )
    scale_bits: Literal[4, 5, 6, 8] | None = Field(
        None,
        description="bits of a scale, and of a minimum, as parts of the row's largest; none: fp16. Tables keep fp16",
    )
    symmetric: bool = Field(False, description="levels around zero, in place of a minimum for each group")
    ranges: Ranges = Field("minmax", description="range of a group: all of it, or narrowed where that errs less")
    zeros: Zeros = Field(
        "free",
        description="minimums of any value, or whole multiples of short scales, which compressed-tensors and "
        "MatMulNBits hold exactly (at most 6 bits)",
    )
    activations: Literal["float", "int8"] = Field(
        "float", description="inputs as they come, or rounded to int8 group by group so that kernels multiply integers"
    )
    min_weights: int = Field(1024, ge=1, le=10**9, description="layers with fewer weights stay as they are")
    table_bits: Bits | None = Field(
        8, description="bits of a Transformer's token embedding and of the head over its rows; none: embeddings stay"
    )

    def prepared(self, model: nn.Module, context: Context) -> tuple[nn.Module, list[Site]]:
        """Return the model with its token tables rounded, and the linear layers that are left to do.

        Raises:
            NothingMatchedError: there is neither a table nor a layer; says why each was left alone.
            ConfigError: a pattern of `only` or `skip` matches no module.
        """
        model, done = linearised(model), False
        tables = token_tables(model, self.scope, context, scaled=True) if self.table_bits is not None else []
        for found in tables:
            model, rounded = self._round_table(model, found, self.table_bits or 8, context)
            done = done or rounded
        sites = self.candidates(model, (nn.Linear,), context, self.reject)
        return model, sites if done else require(sites, self, model, context)

    def _round_table(self, model: nn.Module, found: TokenTable, bits: int, context: Context) -> tuple[nn.Module, bool]:
        """Replace an embedding and its heads, and tell whether it was done."""
        layer = found.stand_in()
        reason = self.reject(layer, bits)
        if reason is not None:
            context.findings.setdefault("skipped", {})[found.table.path] = reason
            return model, False
        made = self._rounded(layer, bits)
        for site in (found.table, *found.others):
            table = GroupQuantizedEmbedding.sharing(TableShape.of(site.module), made, row_factor(site.module) or 1.0)
            model = replace(model, site, table)
        for site in found.heads:
            model = replace(model, site, _head_over(made, site.module))
        if found.untied is not None:
            model = replace(model, found.untied, self._rounded(found.untied.module, bits))
        error, power, _ = compared(layer, made)
        heads = [site.path for site in (*found.heads, *([found.untied] if found.untied else []))]
        context.findings.setdefault("tables", {})[found.table.path] = {
            "bits": bits, "error": round(error / power, 8) if power else 0.0, "heads": heads,
            "stored": "once" if found.untied is None else "each",
        }  # fmt: skip
        if found.equal:
            context.log.note(f"{heads[0]} equals {found.table.path} though the model does not tie them: stored once")
        return model, True

    def _rounded(self, layer: nn.Linear, bits: int) -> GroupQuantizedLinear:
        symmetric = self.symmetric or bits > WITH_MINIMUMS
        grid = fit_grid(layer.weight, bits, self.width(layer), symmetric, self.ranges, self.zeros)
        return GroupQuantizedLinear.from_codes(layer, grid, quantise(layer.weight, grid), self.activations)

    @model_validator(mode="after")
    def _check_zeros(self) -> Self:
        if self.zeros == "whole" and self.scale_bits is not None:
            raise ValueError("zeros=whole needs scales of its own digits, and scale_bits rounds them; set one of them")
        if self.zeros == "whole" and not self.symmetric and self.bits > WITH_MINIMUMS:
            raise ValueError(f"zeros=whole leaves scales of {self.bits} bits too few digits; set symmetric=true")
        return self

    def width(self, layer: nn.Linear) -> int:
        """Return the inputs of a group in this layer."""
        return min(self.group or layer.in_features, layer.in_features)

    def grid_of(self, layer: nn.Linear, weight: Tensor | None = None) -> GroupGrid:
        """Return the grid of a layer's weights, or of others [out, in] in their place, before any is rounded."""
        weight, width = layer.weight if weight is None else weight, self.width(layer)
        return fit_grid(weight, self.bits, width, self.symmetric, self.ranges, self.zeros, self.scale_bits)

    def reject(self, layer: Any, bits: int | None = None) -> str | None:
        """Say why a layer stays as it is at `bits` (the knob's by default), or None."""
        coded = self.scale_bits if bits is None else None  # tables keep fp16
        bits = bits or self.bits
        if layer.weight.numel() < self.min_weights:
            return f"has {layer.weight.numel()} weights, fewer than min_weights {self.min_weights}"
        if layer_bytes(layer, bits, self.width(layer), self.symmetric, coded) >= module_bytes(layer):
            return f"{bits} bit codes with their scales take no fewer bytes than it does now"
        largest = float(layer.weight.detach().abs().max())
        if largest > HALF_MAX:
            return "holds weights beyond 65504, which fp16 scales cannot"
        if 0 < largest < FINEST * 2 ** (bits - 1 + (coded or 0)):
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
        layers, lossless = context.findings.get("layers", {}), context.findings.get("lossless", [])
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


def _head_over(made: GroupQuantizedLinear, layer: nn.Linear) -> GroupQuantizedLinear:
    """Return a layer that holds the very codes of another, and the bias of `layer`."""
    with torch.device("meta"):
        head = GroupQuantizedLinear(
            made.in_features, made.out_features, made.bits, made.group, made.symmetric, layer.bias is not None,
            made.activations,
        )  # fmt: skip
    for name in ("codes", "scales", "minimums"):
        head._buffers[name] = made._buffers[name]
    head._buffers["bias"] = None if layer.bias is None else layer.bias.detach().float().clone()
    return head


def note_error(site: Site, made: DecodedLinear, context: Context) -> None:
    """Keep the squared error of a layer as a share of its squared weights, and name a layer that is all zero."""
    error = power = 0.0
    for part in row_parts(made.out_features, made.in_features):
        weight = site.module.weight[part].detach().float()
        error += float((made.decoded(part) - weight).double().square().sum())
        power += float(weight.double().square().sum())
    context.findings.setdefault("layers", {})[site.path] = round(error / power, 8) if power else 0.0
    if not power:
        context.findings.setdefault("dead", []).append(site.path)
        context.log.note(f"{site.path} is a dead layer: it holds only zeros")


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
