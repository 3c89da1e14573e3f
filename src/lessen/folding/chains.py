"""Two linear layers with nothing between them are one; so are a convolution and one of width 1 after it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lessen.folding.flow import Flow
from lessen.folding.fold import Fold, Found, layer_of, put
from lessen.folding.norms import CONVS, set_bias


def find(flow: Flow) -> Found:
    """Return a fold for each pair that is no dearer as one layer; of pairs in a row one is found at a time."""
    found, taken = Found(), set[str]()
    for path, module in flow.modules.items():
        step = flow.step_of(path)
        kinds = (nn.Linear,) if isinstance(module, nn.Linear) else CONVS
        if step is None or layer_of(flow, step, kinds) is None or not step.reads:
            continue
        before = layer_of(flow, flow.source(step.reads[0]), (type(module),))
        if before is None or {before, path} & taken:
            continue
        reason = _obstacle(flow.modules[before], module)
        if reason:
            found.kept[f"{before} and {path}"] = reason
            continue
        taken |= {before, path}
        found.folds.append(_merged(before, path))
    return found


def _merged(before: str, path: str) -> Fold:
    def apply(model: nn.Module) -> None:
        first, second = model.get_submodule(before), model.get_submodule(path)
        put(model, before, product(first, second))
        put(model, path, nn.Identity())

    return Fold("linear chain", path, before, apply)


@torch.no_grad()
def product(first: Any, second: Any) -> nn.Module:
    """Return one layer that does what `first` and then `second` do."""
    left, right = second.weight, first.weight
    assert isinstance(left, Tensor)
    assert isinstance(right, Tensor)
    flat = left.reshape(left.shape[0], left.shape[1])
    made: nn.Module = copy.deepcopy(first)
    weight = torch.einsum("om,m...->o...", flat, right)
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=right.requires_grad)
    bias = None if first.bias is None else flat @ first.bias
    if second.bias is not None:
        bias = second.bias if bias is None else bias + second.bias
    if bias is not None:
        set_bias(made, bias)
    setattr(made, "out_features" if isinstance(first, nn.Linear) else "out_channels", left.shape[0])
    return made


def _obstacle(first: Any, second: Any) -> str | None:
    if isinstance(second, CONVS):
        trivial = {1}, {1}, {0}, {1}
        own = (set(second.kernel_size), set(second.stride), set(second.padding), {second.groups})
        if own != trivial or getattr(first, "groups", 1) != 1:
            return "the second is no plain convolution of width 1, or the first is grouped"
    inner, outer = second.weight.shape[1], second.weight.shape[0]
    per_input = first.weight.numel() // max(1, first.weight.shape[0])
    if outer * per_input > inner * per_input + outer * inner:
        return "one layer would take more multiply-adds than the two"
    return None
