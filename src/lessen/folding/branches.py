"""Parallel convolutions of one input whose answers are added are one convolution: RepVGG's branches, norms included."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lessen.folding.flow import Flow, Step
from lessen.folding.fold import Fold, Found, layer_of, put
from lessen.folding.norms import CONVS, NORMS, affine, set_bias
from lessen.stored.constant import Constant

ADDS = frozenset({"add", "__add__", "__radd__", "add_", "__iadd__"})


def find(flow: Flow) -> Found:
    """Return a fold for each addition of two branches that are one convolution, no module in two of them."""
    found, taken = Found(), set[str]()
    for step in flow.steps:
        if step.name not in ADDS or len(step.reads) != 2 or step.keywords.get("alpha", 1) != 1:
            continue
        sources = [flow.source(value) for value in step.reads]
        paths = [layer_of(flow, source, (*CONVS, *NORMS)) for source in sources]
        if None in paths or sources[0] is sources[1] or set(paths) & taken:
            continue
        one, other = sorted((str(path) for path in paths), key=lambda path: -_width(flow.modules[path]))
        reason = _obstacle(flow, one, other)
        if reason:
            found.kept[f"{one} and {other}"] = reason
            continue
        taken |= {one, other}
        found.folds.append(_merged(one, other))
    return found


def _merged(kept: str, path: str) -> Fold:
    def apply(model: nn.Module) -> None:
        conv: Any = model.get_submodule(kept)
        branch: Any = model.get_submodule(path)
        made: Any = copy.deepcopy(conv)
        weight, bias = as_kernel(branch, conv)
        with torch.no_grad():
            made.weight.add_(weight)
        if bias is not None:
            set_bias(made, bias if conv.bias is None else conv.bias + bias)
        put(model, kept, made)
        nothing = Constant().to(conv.weight.device)
        nothing.value = nothing.value.to(conv.weight.dtype)
        put(model, path, nothing)

    return Fold("branch", path, kept, apply)


@torch.no_grad()
def as_kernel(branch: Any, conv: Any) -> tuple[Tensor, Tensor | None]:
    """Return a branch, a convolution or a batch norm, as a kernel of the shape of `conv`'s and a bias."""
    target = conv.weight
    made = torch.zeros_like(target)
    sizes = tuple(target.shape[2:])
    if isinstance(branch, NORMS):
        scale, shift = affine(branch)
        outputs = torch.arange(target.shape[0], device=target.device)
        centre = tuple(size // 2 for size in sizes)
        made[(outputs, outputs % target.shape[1], *centre)] = scale
        return made, shift
    kernel, bias = branch.weight, branch.bias
    rim = [(size - own) // 2 for size, own in zip(sizes, kernel.shape[2:], strict=True)]
    place = tuple(slice(start, start + own) for start, own in zip(rim, kernel.shape[2:], strict=True))
    made[(slice(None), slice(None), *place)] = kernel
    return made, bias


def _width(module: nn.Module | None) -> int:
    return module.weight[0, 0].numel() if isinstance(module, CONVS) else 0


def _obstacle(flow: Flow, one: str, other: str) -> str | None:
    conv: Any = flow.modules[one]
    branch: Any = flow.modules[other]
    if not isinstance(conv, CONVS):
        return "neither branch is a convolution"
    if _input(flow, one) != _input(flow, other):
        return "they read different inputs"
    if conv.padding_mode != "zeros" or not _centred(conv):
        return f"{one} does not keep its kernel's centre where an unpadded branch has it"
    if isinstance(branch, NORMS):
        same = conv.in_channels == conv.out_channels == branch.num_features and set(conv.stride) == {1}
        return None if same else f"{one} changes the size, {other} does not"
    alike = ("in_channels", "out_channels", "groups", "stride", "padding_mode")
    if type(branch) is not type(conv) or any(getattr(branch, name) != getattr(conv, name) for name in alike):
        return "they differ in more than the size of the kernel"
    wide = any(side > 1 for side in branch.kernel_size)
    if not _centred(branch) or (wide and branch.dilation != conv.dilation):
        return "their kernels do not lie on each other"
    return None


def _input(flow: Flow, path: str) -> int | None:
    step: Step | None = flow.step_of(path)
    return None if step is None else step.reads[0]


def _centred(conv: Any) -> bool:
    """Tell whether odd kernels are padded so that each output lies over its own input."""
    if isinstance(conv.padding, str):
        return False
    sides = zip(conv.kernel_size, conv.padding, conv.dilation, strict=True)
    return all(size % 2 == 1 and pad == step * (size - 1) // 2 for size, pad, step in sides)
