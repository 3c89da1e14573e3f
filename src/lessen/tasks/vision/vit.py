"""A small plain vision Transformer with a convolutional stem, the one that token reductions are judged on.

    image [B,3,S,S] --stem--> patches [B,P,C] --+ class token, positions--> [B,1+P,C] --blocks--> norm --> head(class)

Blocks are pre-norm (`norm1, attn, norm2, mlp`), with separate query, key and value projections so that low-rank
corrections and hooks find them by name. The stem is that of "Early Convolutions Help Transformers See Better"
(arXiv 2106.14881); with `stem=()` it is one strided convolution, as in the original ViT (arXiv 2010.11929).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from lessen.errors import InputError


class ViTOptions(BaseModel):
    """Shape of a plain ViT."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    image_size: int = Field(32, ge=4)
    patch_size: int = Field(4, ge=1)
    width: int = Field(192, ge=8)
    depth: int = Field(6, ge=1)
    heads: int = Field(3, ge=1)
    mlp_ratio: float = Field(2.0, gt=0)
    classes: int = Field(10, ge=2)
    stem: tuple[int, ...] = (32, 64, 96)
    """Channels of the 3x3 convolutions of the stem; the last ones have stride 2 until the patch size is reached."""

    @model_validator(mode="after")
    def _consistent(self) -> ViTOptions:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        halvings = self.patch_size.bit_length() - 1
        if self.stem and (2**halvings != self.patch_size or halvings > len(self.stem)):
            raise ValueError(f"a stem of {len(self.stem)} convolutions cannot reach patch_size {self.patch_size}")
        return self


class Attention(nn.Module):
    """Multi-head self-attention on [B,N,C]; `bias` [B,1,1,N] is added to the logits of each key."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the attention output [B,N,C]."""
        return self.attend(x, bias)[0]

    def attend(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output and the projections it used: queries and keys, all [B,N,C]."""
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        mask = None if bias is None else bias.to(query.dtype)
        out = F.scaled_dot_product_attention(self._heads(query), self._heads(key), self._heads(value), attn_mask=mask)
        joined = out.transpose(1, 2)
        if torch.compiler.is_exporting():  # the exporter lays attention out differently than its trace promised
            joined = joined.clone(memory_format=torch.contiguous_format)
        return self.out_proj(joined.flatten(2)), query, key

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


class Mlp(nn.Sequential):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Block(nn.Module):
    """A pre-norm Transformer block on [B,N,C]."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Return x after attention and MLP, both residual."""
        x = x + self.attn(self.norm1(x))
        return torch.as_tensor(x + self.mlp(self.norm2(x)))


class PlainViT(nn.Module):
    """A ViT classifier on images [B,3,S,S] float; returns logits [B,classes]."""

    def __init__(self, options: ViTOptions | None = None, **values: Any) -> None:
        super().__init__()
        self.options = options = options or ViTOptions(**values)
        self.grid = (options.image_size // options.patch_size,) * 2
        self.stem = _stem(options)
        self.class_token = nn.Parameter(torch.zeros(1, 1, options.width))
        self.position = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], options.width))
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(
            Block(options.width, options.heads, options.mlp_ratio) for _ in range(options.depth)
        )
        self.norm = nn.LayerNorm(options.width, eps=1e-6)
        self.head = nn.Linear(options.width, options.classes)

    def embed(self, images: Tensor) -> Tensor:
        """Return class token and patches with their positions, [B,1+P,C]. Raises InputError for a wrong size."""
        size = self.options.image_size
        if images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise InputError(
                f"this ViT takes images [batch, 3, {size}, {size}], found {list(images.shape)}; resize them first"
            )
        patches = self.stem(images).flatten(2).transpose(1, 2)
        return (
            torch.cat([self.class_token.expand(images.shape[0], -1, -1).to(patches.dtype), patches], 1) + self.position
        )

    def encode(self, tokens: Tensor) -> Tensor:
        """Run the blocks and the last norm on tokens [B,N,C]."""
        for block in self.blocks:
            tokens = block(tokens)
        return torch.as_tensor(self.norm(tokens))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,classes]."""
        return torch.as_tensor(self.head(self.encode(self.embed(images))[:, 0]))


def _stem(options: ViTOptions) -> nn.Sequential:
    if not options.stem:
        patch = options.patch_size
        return nn.Sequential(nn.Conv2d(3, options.width, patch, stride=patch))
    halvings = options.patch_size.bit_length() - 1
    layers: list[nn.Module] = []
    before = 3
    for number, channels in enumerate(options.stem):
        stride = 2 if number >= len(options.stem) - halvings else 1
        layers += [nn.Conv2d(before, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        before = channels
    return nn.Sequential(*layers, nn.Conv2d(before, options.width, 1))
