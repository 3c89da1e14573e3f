"""Batch norms into the layer before them, or into all layers after them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.folding.flow import Flow, Step
from lessen.folding.fold import Fold, Found, layer_of, put, ready

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVS, *TRANSPOSED)


def find(flow: Flow) -> Found:
    """Return a fold for each batch norm that has a place to go."""
    found = Found()
    for path, module in flow.modules.items():
        if not isinstance(module, NORMS):
            continue
        reason = ready(flow, path, NORMS)
        if reason is None and module.running_mean is None:
            reason = "normalises by the statistics of each batch"
        step = flow.step_of(path)
        if reason is None and step is not None:
            fold = _into_before(flow, path, step) or _into_after(flow, path, step)
            if fold is not None:
                found.folds.append(fold)
                continue
            reason = "no linear layer or convolution stands beside it alone"
        found.kept[path] = reason or ""
    return found


@torch.no_grad()
def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return the scale and the shift [channels] that a batch norm is once it is trained."""
    if not isinstance(norm, NORMS) or norm.running_mean is None or norm.running_var is None:
        raise TypeError(f"a {type(norm).__name__} has no running statistics")
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _into_before(flow: Flow, path: str, step: Step) -> Fold | None:
    before = layer_of(flow, flow.source(step.reads[0]), LAYERS)
    if before is None:  # features of rows, whatever shape the rows lie in
        before = layer_of(flow, flow.source(step.reads[0], rows=True), (nn.Linear,))
    if before is None or not _channels_are(flow, step.reads[0], flow.modules[before]):
        return None

    def apply(model: nn.Module) -> None:
        norm, layer = model.get_submodule(path), model.get_submodule(before)
        _scale_outputs(layer, *affine(norm))
        put(model, path, nn.Identity())

    return Fold("batch norm", path, before, apply)


def _into_after(flow: Flow, path: str, step: Step) -> Fold | None:
    readers = flow.readers(step.makes[0])
    if not readers:
        return None
    after = [layer_of(flow, reader, (nn.Linear, *CONVS)) for reader in readers]
    plain = [layer for layer in after if layer is not None]
    shifted = bool(affine(flow.modules[path])[1].any())
    if len(plain) < len(after) or len(set(plain)) < len(after):
        return None
    for layer in plain:
        module = flow.modules[layer]
        if not _channels_are(flow, step.makes[0], module):
            return None
        if shifted and isinstance(module, CONVS) and pads(module):  # the rim is padded with zeros after the norm
            return None

    def apply(model: nn.Module) -> None:
        scale, shift = affine(model.get_submodule(path))
        for layer in plain:
            _scale_inputs(model.get_submodule(layer), scale, shift)
        put(model, path, nn.Identity())

    return Fold("batch norm", path, ", ".join(plain), apply)


def _channels_are(flow: Flow, value: int, layer: nn.Module) -> bool:
    """Tell whether the channels of a norm, axis 1, are the channels of a layer beside it."""
    return not isinstance(layer, nn.Linear) or flow.tensor(value).dim() == 2


def pads(layer: Any) -> bool:
    """Tell whether a layer adds a rim to its input."""
    padding = getattr(layer, "padding", 0)
    return padding != "valid" and (isinstance(padding, str) or bool(torch.tensor(padding).any()))


@torch.no_grad()
def _scale_outputs(layer: Any, scale: Tensor, shift: Tensor) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    if isinstance(layer, TRANSPOSED):
        shape = weight.shape
        grouped = weight.reshape(layer.groups, shape[0] // layer.groups, shape[1], -1)
        weight.copy_((grouped * scale.reshape(layer.groups, 1, shape[1], 1)).reshape(shape))
    else:
        weight.mul_(scale.reshape(-1, *[1] * (weight.dim() - 1)))
    set_bias(layer, shift if bias is None else bias * scale + shift)


@torch.no_grad()
def _scale_inputs(layer: Any, scale: Tensor, shift: Tensor) -> None:
    weight, groups = layer.weight, int(getattr(layer, "groups", 1))
    assert isinstance(weight, Tensor)
    outputs, width = weight.shape[0] // groups, weight.shape[1]
    sums = weight.reshape(weight.shape[0], width, -1).sum(-1)  # what a constant input is multiplied by
    each = shift.reshape(groups, 1, width).expand(groups, outputs, width).reshape(-1, width)
    more = (sums * each).sum(1)
    factor = scale.reshape(groups, 1, width).expand(groups, outputs, width).reshape(-1, width)
    weight.mul_(factor.reshape(*factor.shape, *[1] * (weight.dim() - 2)))
    if layer.bias is not None or bool(more.any()):
        set_bias(layer, more if layer.bias is None else layer.bias + more)


def set_bias(layer: Any, bias: Tensor) -> None:
    """Give a layer this bias [out]."""
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=layer.weight.requires_grad)
