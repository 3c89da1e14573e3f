"""Batch norms multiplied into the convolutions before them, so that what is rounded is what the network computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lessen.architectures.cnn import CONVOLUTIONS, find_convolutions
from lessen.methods.sites import replace_everywhere
from lessen.stored.linears.static_int8 import LAYERS
from lessen.task import Task


def fold_batch_norms(model: nn.Module, task: Task) -> tuple[nn.Module, list[str]]:
    """Return the model with identities in the place of batch norms that alone read a convolution, and their paths."""
    if not any(isinstance(module, CONVOLUTIONS) for module in model.modules()):
        return model, []
    folded = []
    for found in find_convolutions(model, lambda it: task.forward(it, task.example_batch())):
        layer, norm = found.part.module, found.norm
        if norm is not None and type(layer) in LAYERS and norm.module.running_var is not None:
            model = replace_everywhere(model, layer, _merged(layer, norm.module))
            model = replace_everywhere(model, norm.module, nn.Identity().eval())
            folded.append(norm.path)
    return model, folded


@torch.no_grad()
def _merged(layer: Any, norm: Any) -> nn.Module:
    """Return a convolution that answers as layer and norm together do in evaluation mode."""
    made: Any = type(layer)(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        layer.groups, bias=True, padding_mode=layer.padding_mode, device=layer.weight.device, dtype=layer.weight.dtype,
    )  # fmt: skip
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    gain = gain if norm.weight is None else gain * norm.weight.double()
    shift = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    made.weight.copy_(layer.weight.double() * gain.view(-1, *[1] * (layer.weight.dim() - 1)))
    made.bias.copy_(shift * gain + (0.0 if norm.bias is None else norm.bias.double()))
    return made.train(layer.training)  # type: ignore[no-any-return]
