"""Weights and models on grids, as the methods leave them, for tests of containers."""

from __future__ import annotations

import torch

from lessen.export.codes import Coded
from lessen.methods.weights._shared.grids import fit_grid, quantise
from lessen.stored.linears.coded_scales import CodedScalesLinear
from lessen.stored.linears.group_quantized import GroupQuantizedLinear


def on_grid(
    rows: int, inputs: int, bits: int, group: int, symmetric: bool, whole: bool = False, scale_bits: int | None = None
) -> Coded:
    weight = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(bits))
    grid = fit_grid(weight, bits, group, symmetric, "minmax", "whole" if whole else "free", scale_bits)
    return Coded(quantise(weight, grid), grid)


def compact(model, bits: int = 4, group: int = 32, symmetric: bool = False, whole: bool = False, scale_bits=None):
    """The model with every linear layer of its blocks on a grid."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and "lm_head" not in path:
            zeros = "whole" if whole else "free"
            grid = fit_grid(layer.weight.detach(), bits, group, symmetric, "minmax", zeros, scale_bits)
            made = (GroupQuantizedLinear if scale_bits is None else CodedScalesLinear).from_codes(
                layer, grid, quantise(layer.weight.detach(), grid)
            )
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, made)
    return model
