"""Exact folds of a word-spotting head (FDP): blocks that look large in training and are a few numbers afterwards.

Source: FDP, Zeng et al., ACM MM 2024, arXiv 2408.00441. Its score map is three 1 x 1 convolutions without anything
between them: one matrix. Its probe attends to ONE key, so that every attention weight is 1: the block of 33.6 million
parameters adds a constant vector before its norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.errors import ConfigError


def folded_convolutions(layers: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """Return one 1 x 1 convolution for several in a row with nothing between them.

    Raises:
        ConfigError: one is not 1 x 1, has groups, stride or padding, or does not fit the one before it.
    """
    if not layers:
        raise ConfigError("there is no convolution to fold")
    for number, layer in enumerate(layers):
        plain = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and layer.padding == (0, 0)
        if not plain or (number and layer.in_channels != layers[number - 1].out_channels):
            raise ConfigError(f"convolution {number} of the row is not 1 x 1 of the right width; it cannot be folded")
    weight = torch.eye(layers[0].in_channels, dtype=torch.float64)
    bias = torch.zeros(layers[0].in_channels, dtype=torch.float64)
    for layer in layers:
        own = layer.weight.detach().double()[:, :, 0, 0]
        weight, bias = own @ weight, own @ bias
        if layer.bias is not None:
            bias = bias + layer.bias.detach().double()
    with torch.random.fork_rng(devices=[]):  # a layer draws its start, which is not used
        made = nn.Conv2d(layers[0].in_channels, layers[-1].out_channels, 1)
    with torch.no_grad():
        made.weight.copy_(weight[:, :, None, None])
        made.bias.copy_(bias)  # type: ignore[union-attr]
    return made


class FoldedProbe(nn.Module):
    """g + LayerNorm(g + constant): what a cross-attention to one key does in eval mode, [B, dim] to [B, dim]."""

    constant: Tensor

    def __init__(self, constant: Tensor, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.register_buffer("constant", constant)
        self.norm = norm

    @classmethod
    def of(cls, key: Tensor, value: nn.Linear, out: nn.Linear, norm: nn.LayerNorm) -> FoldedProbe:
        """Fold the block around its one key, [dim]: values by `value`, heads joined by `out`."""
        with torch.no_grad():
            return cls(out(value(key)), norm)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the probed features."""
        probed: Tensor = self.norm(pooled + self.constant)
        return pooled + probed


def focused_pool(
    tokens: Tensor, scores: Tensor, query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Linear, heads: int
) -> Tensor:
    """Return the pooled vector of each picture, [B, dim], where a map of scores is ADDED to what the mean attends to.

    Args:
        tokens: [B, 1 + cells, dim], the mean first, positions added; scores: [B, cells] before their sigmoid. The mean
            itself has a bias of 1, cells between 0 and 1: at most one logit of focus, as published.
    """
    batch, count, width = tokens.shape
    size = width // heads
    asked = query(tokens[:, :1]).view(batch, 1, heads, size).transpose(1, 2)
    keys, values = (one(tokens).view(batch, count, heads, size).transpose(1, 2) for one in (key, value))
    bias = torch.cat([torch.ones_like(scores[:, :1]), scores.sigmoid()], dim=1)[:, None, None]
    pooled = F.scaled_dot_product_attention(asked, keys, values, attn_mask=bias)
    found: Tensor = out(pooled.transpose(1, 2).reshape(batch, -1))
    return found
