"""Linear layers spelt otherwise - GPT-2's Conv1D, Falcon's own product - turned before anything is made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lessen.architectures.replaceable import watched_by_others
from lessen.methods.sites import replace_everywhere
from lessen.stored.linears.low_rank import empty_linear


def linearised(model: nn.Module) -> nn.Module:
    """Return `model` with an `nn.Linear` of equal values in the place of each layer of transformers that is one.

    A layer that carries hooks or a parametrisation, or whose matrix another module holds too, stays as it is.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for module in list(model.modules()):
        if not is_conv1d(module) and not is_respelt(module):
            continue
        if watched_by_others(module) is None and all(owners[id(parameter)] == 1 for parameter in module.parameters()):
            made = as_linear(module) if is_conv1d(module) else plain_linear(module)
            model = replace_everywhere(model, module, made)
    return model


def is_conv1d(module: nn.Module) -> bool:
    """Tell whether a module is Hugging Face's Conv1D, weight [in, out]; its forward is the library's own."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


@torch.no_grad()
def is_respelt(module: Any) -> bool:
    """Tell whether a module is transformers' subclass of `nn.Linear` that writes x W^T + b in words of its own."""
    if not isinstance(module, nn.Linear) or not type(module).__module__.startswith("transformers."):
        return False
    weight = module.weight
    if type(module).forward is nn.Linear.forward or weight.is_meta or not weight.is_floating_point():
        return False
    drawn = torch.randn(3, module.in_features, generator=torch.Generator().manual_seed(0)).to(weight)
    wanted, found = functional.linear(drawn, weight, module.bias), module(drawn)
    near = 16 * torch.finfo(weight.dtype).eps * float(wanted.abs().max())
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= near


@torch.no_grad()
def as_linear(layer: Any) -> nn.Linear:
    """Return an `nn.Linear` with the values of a Conv1D, in its type and on its device."""
    inputs, outputs = layer.weight.shape
    made = empty_linear(inputs, outputs, layer.bias is not None).to(layer.weight)
    made.weight.copy_(layer.weight.t())
    if layer.bias is not None:
        made.bias.copy_(layer.bias)
    return made.requires_grad_(layer.weight.requires_grad)


def plain_linear(layer: Any) -> nn.Linear:
    """Return an `nn.Linear` that holds the parameters of a subclass."""
    with torch.device("meta"):
        made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.weight, made.bias = layer.weight, layer.bias
    return made
