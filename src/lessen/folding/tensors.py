"""Tensors that stand twice in a model, and float64 tensors of a float32 model that say no more than float32."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from lessen.folding.fold import Fold, Found

FEW = 64
"""Values below which one more copy is not worth a word."""


def doubles(model: nn.Module) -> Found:
    """Return a fold for each parameter that equals another bit for bit: it becomes the same parameter."""
    found = Found()
    groups: dict[tuple[torch.Size, torch.dtype, float], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.numel() >= FEW and not parameter.is_meta:
            key = (parameter.shape, parameter.dtype, float(parameter.detach().double().abs().sum()))
            groups[key].append((name, parameter))
    for group in groups.values():
        first, kept = group[0]
        for name, parameter in group[1:]:
            if torch.equal(kept, parameter):
                found.folds.append(_tie(name, first))
    return found


def long_floats(model: nn.Module) -> Found:
    """Return a fold for each float64 tensor of a model of shorter floats whose values float32 holds."""
    found = Found()
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if not kinds or (torch.float64 in kinds and len(kinds) == 1):
        return found
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dtype is not torch.float64:
            continue
        if torch.equal(tensor.float().double(), tensor):
            found.folds.append(_shorten(name))
        else:
            found.kept[name] = "float32 does not hold its values"
    return found


def _tie(name: str, first: str) -> Fold:
    def apply(model: nn.Module) -> None:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, model.get_parameter(first))

    return Fold("double", name, first, apply)


def _shorten(name: str) -> Fold:
    def apply(model: nn.Module) -> None:
        parent, _, own = name.rpartition(".")
        holder = model.get_submodule(parent)
        tensor: Tensor = getattr(holder, own)
        short = tensor.detach().float()
        setattr(holder, own, nn.Parameter(short, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else short)

    return Fold("float64", name, "", apply)
