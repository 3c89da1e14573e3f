"""Multiplying rotations and gains of norms into the layers around them, in float64 and in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.parts import Part, Stack
from lessen.stored.linears.rotated import rotate


class Gains:
    """What an RMS norm multiplies by, read from what it does: classes keep it as a gain or as one plus it."""

    @staticmethod
    @torch.no_grad()
    def of(norm: Any) -> Tensor | None:
        """Return the gain, float32 [width], or None where the norm is no RMS norm without a bias."""
        weight = getattr(norm, "weight", None)
        if weight is None or getattr(norm, "bias", None) is not None:
            return None
        probe = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
        probe = probe + 3.0
        made, unit = norm(probe).double(), _unit(probe)
        own: Tensor = weight.detach().float()
        for gain in (own, 1 + own):
            if float((made - unit * gain).abs().max()) <= 2e-2 * float(made.abs().max()):
                return gain
        return None

    @staticmethod
    def eps(norm: Any) -> float:
        """Return what the norm adds to the mean square."""
        found = next(
            (getattr(norm, n) for n in ("variance_epsilon", "eps") if getattr(norm, n, None) is not None), None
        )
        return 1e-6 if found is None else float(found)


def _unit(values: Tensor) -> Tensor:
    wide = values.double()
    return wide * wide.square().mean(-1, keepdim=True).rsqrt()


def plain(part: Part) -> bool:
    """Tell whether a part is a linear layer with a matrix of its own type."""
    return type(part.module) is nn.Linear


def check_residual(stack: Stack) -> str | None:
    """Say why the residual stream of a stack cannot be rotated, or None."""
    if stack.final_norm is None or Gains.of(stack.final_norm.module) is None:
        return "it does not end in an RMS norm"
    if not isinstance(getattr(stack.embedding, "module", None), nn.Embedding) or stack.positions is not None:
        return "it does not begin with a plain token embedding alone"
    for block in stack.blocks:
        norms, feed, attention = block.norms, block.feed_forward, block.attention
        if attention is None or feed is None or block.cross is not None or block.experts is not None:
            return f"{block.path} is not one attention and one feed-forward layer"
        if norms.on_residual or norms.after_attention is not None or norms.after_feed_forward is not None:
            return f"{block.path} norms what a branch gives"
        for norm in (norms.before_attention, norms.before_feed_forward):
            if norm is None or Gains.of(norm.module) is None:
                return f"{block.path} reads it through something else than RMS norms"
        if not all(plain(part) for part in block.linears.values()):
            return f"{block.path} holds layers that are not plain linear ones"
    return None


@torch.no_grad()
def fold_gain(norm: Any, readers: list[Any]) -> None:
    """Multiply the gain of a norm into the columns of all layers that read it, and leave the norm without one."""
    gain = Gains.of(norm)
    assert gain is not None
    for layer in readers:
        layer.weight.copy_(layer.weight.double() * gain.double().to(layer.weight.device))
    norm.weight.fill_(1.0)
    left = Gains.of(norm)
    if left is None or float((left - 1).abs().max()) > 0.5:  # it adds one to its weight
        norm.weight.fill_(0.0)


@torch.no_grad()
def rotate_columns(layer: Any, signs: Tensor, columns: Tensor | None = None) -> None:
    """Turn the columns of a weight [out, in] to inputs that are rotated: W O^T."""
    weight = layer.weight.double()
    if columns is None:
        layer.weight.copy_(rotate(weight, signs.to(weight.device)))
    else:
        columns = columns.to(weight.device)
        weight[:, columns] = rotate(weight[:, columns], signs.to(weight.device))
        layer.weight.copy_(weight)


@torch.no_grad()
def rotate_rows(layer: Any, signs: Tensor, rows: Tensor | None = None) -> None:
    """Rotate what a layer gives, its weight's rows and its bias: O W, O b."""
    rows = torch.arange(len(layer.weight)) if rows is None else rows
    rows, signs = rows.to(layer.weight.device), signs.to(layer.weight.device)
    layer.weight[rows] = rotate(layer.weight[rows].double().t(), signs).t().to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias[rows] = rotate(layer.bias[rows].double(), signs).to(layer.bias.dtype)
