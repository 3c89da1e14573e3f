"""GPT-2's Conv1D, which is a linear layer with its matrix the other way round: turned before anything is made of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lessen.methods.sites import replace_everywhere
from lessen.stored.linears.low_rank import empty_linear


def linearised(model: nn.Module) -> nn.Module:
    """Return `model` with an `nn.Linear` of equal values in the place of each Conv1D of transformers.

    A layer whose matrix another module holds too stays as it is.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for module in list(model.modules()):
        if is_conv1d(module) and all(owners[id(parameter)] == 1 for parameter in module.parameters()):
            model = replace_everywhere(model, module, as_linear(module))
    return model


def is_conv1d(module: nn.Module) -> bool:
    """Tell whether a module is Hugging Face's Conv1D, weight [in, out]; its forward is the library's own."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


@torch.no_grad()
def as_linear(layer: Any) -> nn.Linear:
    """Return an `nn.Linear` with the values of a Conv1D, in its type and on its device."""
    inputs, outputs = layer.weight.shape
    made = empty_linear(inputs, outputs, layer.bias is not None).to(layer.weight)
    made.weight.copy_(layer.weight.t())
    if layer.bias is not None:
        made.bias.copy_(layer.bias)
    return made.requires_grad_(layer.weight.requires_grad)
