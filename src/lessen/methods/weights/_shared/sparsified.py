"""Knobs and reasons that every method shares which leaves sparse layers, and what it records of each."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from lessen.method import Context
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import Site, module_bytes, replace
from lessen.methods.weights._shared.few_bits import HALF_MAX
from lessen.sparsity.pattern import Pattern
from lessen.stored.base import StoredModule
from lessen.stored.linears.sparse import SparseConv, SparseLinear, to_matrix
from lessen.stored.linears.sparse_matrix import VALUES, SparseMatrix, sparse_bytes

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
HALF_OF_THEM = 0.5


class Sparsified(ModuleMethod):
    """Base of methods that leave `SparseLinear` and `SparseConv`."""

    values: Literal["same", "fp16", "bf16", "int8"] = Field(
        "same", description="kept values: of the layer's type, in 16 bits, or int8 with a scale for each output"
    )
    activations: Literal["float", "int8"] = Field(
        "float",
        description="inputs as they come, or rounded to int8 row by row so that a kernel multiplies int8 values",
    )
    min_weights: int = Field(1024, ge=1, le=10**9, description="layers with fewer weights stay as they are")

    @model_validator(mode="after")
    def _values_for_the_kernel(self) -> Self:
        if self.activations == "int8" and self.values != "int8":
            raise ValueError("activations=int8 needs values=int8: the kernel multiplies integers")
        return self

    @property
    @abstractmethod
    def kept(self) -> Pattern:
        """What stays of each layer."""

    def reject(self, layer: Any) -> str | None:
        """Say why a layer stays dense, or None."""
        if layer.weight.numel() < self.min_weights:
            return f"has {layer.weight.numel()} weights, fewer than min_weights {self.min_weights}"
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            return f"pads its input by {layer.padding_mode}, which the sparse form does not"
        if layer.weight.dtype == torch.float64:
            return "holds float64, which has no sparse form; convert it to float32 first"
        if self.values == "fp16" and float(layer.weight.detach().abs().max()) > HALF_MAX:
            return "holds weights beyond 65504, which fp16 cannot; use bf16"
        if self.kept.m and (reason := self.kept.obstacle(layer.weight.shape[1])):
            return reason
        rows, columns = len(layer.weight), layer.weight[0].numel()
        return self._no_gain(layer, self.kept.kept(rows * columns))

    def _no_gain(self, layer: Any, kept: int) -> str | None:
        rows, columns, pattern = len(layer.weight), layer.weight[0].numel(), self.kept
        bias = 4 * rows if layer.bias is not None else 0
        size = sparse_bytes(rows, columns, kept, self._kind(layer), pattern.n, pattern.m) + bias
        if size >= module_bytes(layer):
            return f"{kept / layer.weight.numel():.3g} of its weights and their places take no fewer bytes than now"
        return None

    def _kind(self, layer: Any) -> str:
        if self.values != "same":
            return self.values
        return next(name for name, dtype in VALUES.items() if dtype == layer.weight.dtype)

    @torch.no_grad()
    def put(self, model: nn.Module, site: Site, weight: Tensor, mask: Tensor, context: Context) -> nn.Module:
        """Replace a layer by the sparse form of matrices [out, columns], as `to_matrix` makes them.

        A layer of which too much stayed to be smaller is left as it was, and named.
        """
        reason = self._no_gain(site.module, int(mask.sum()))
        if reason is not None:
            context.findings.setdefault("skipped", {})[site.path] = reason
            return model
        return replace(model, site, self.made(site, weight, mask, context))

    @torch.no_grad()
    def made(
        self, site: Site, weight: Tensor, mask: Tensor, context: Context, scales: Tensor | None = None
    ) -> StoredModule:
        """Return the sparse form of a layer, and record what stayed and its squared error.

        Args:
            scales: of int8 values, float32 [out], where they are chosen already.
        """
        layer, pattern = site.module, self.kept
        matrix = SparseMatrix.of(weight, mask, self._kind(layer), pattern.n, pattern.m, scales)
        was = to_matrix(layer.weight.detach()).float()
        power = float(was.double().square().sum())
        away = float((matrix.dequantise() - was).double().square().sum())
        context.findings.setdefault("layers", {})[site.path] = {
            "kept": round(len(matrix.values) / mask.numel(), 6), "error": round(away / power, 8) if power else 0.0,
        }  # fmt: skip
        if isinstance(layer, nn.Linear):
            return SparseLinear.around(layer, matrix, self.activations)
        return SparseConv.around(layer, matrix)

    def remark(self, model: nn.Module, context: Context) -> None:
        """Record how many of all the model's weights are left: sparse layers are a part of it only."""
        kept = total = 0
        for module in model.modules():
            if isinstance(module, SparseMatrix):
                kept, total = kept + len(module.values), total + module.rows * module.columns
        others = sum(parameter.numel() for parameter in model.parameters())
        if total + others:
            context.findings["density"] = {
                "of the sparse layers": round(kept / max(total, 1), 6),
                "of all weights": round((kept + others) / (total + others), 6),
            }


class AnyPattern(Sparsified):
    """Base of methods that keep weights anywhere, or N of every M."""

    pattern: str | None = Field(None, description="N:M, weights kept in every run of M inputs; none: anywhere")
    density: float | None = Field(
        None, gt=0, le=0.95, description="share of the weights that is kept anywhere; none: half, or what N:M says"
    )

    @field_validator("pattern", mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        return as_written(value)

    @field_validator("pattern")
    @classmethod
    def _a_pattern(cls, value: str | None) -> str | None:
        return value if value is None else checked(value)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.pattern is not None and self.density is not None:
            raise ValueError(f"pattern={self.pattern} says the density; leave density out")
        return self

    @property
    def kept(self) -> Pattern:
        """What stays of each layer."""
        return Pattern.parse(self.pattern) if self.pattern else Pattern(self.density or HALF_OF_THEM)


def checked(pattern: str) -> str:
    """Return a pattern that is one. Raises ValueError."""
    Pattern.parse(pattern)
    return pattern


def as_written(value: Any) -> Any:
    """Return 2:4 as it was written: YAML 1.1, of recipes and of the command line, reads it as 2 * 60 + 4."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return f"{value // 60}:{value % 60}" if whole else value
