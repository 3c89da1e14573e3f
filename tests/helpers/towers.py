"""Small random towers of every family, and a stand-in for timm's blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.tasks.vision.vit import PlainViT

SHAPE = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 64, "patch_size": 8}


class TimmAttention(nn.Module):
    """The names and behaviour of timm's attention: fused projection, query and key norms."""

    def __init__(self, width=48, heads=3):
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x, attn_mask=None):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        out = nn.functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=attn_mask)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class Scale(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x):
        return x * self.gamma


class TimmStyleBlock(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = TimmAttention(width)
        self.ls1, self.ls2 = Scale(width), Scale(width)
        self.drop_path1, self.drop_path2 = nn.Identity(), nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x, attn_mask=None):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class TimmStyleViT(nn.Module):
    def __init__(self, pool="token"):
        super().__init__()
        self.global_pool, self.num_prefix_tokens = pool, 1 if pool == "token" else 0
        self.patch_embed = nn.Conv2d(3, 48, 8, stride=8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 48))
        self.blocks = nn.Sequential(*[TimmStyleBlock() for _ in range(4)])
        self.head = nn.Linear(48, 10)

    def forward(self, images):
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        if self.num_prefix_tokens:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = self.blocks(x)
        return self.head(x[:, 0] if self.num_prefix_tokens else x.mean(1))


class MaskedViT(TimmStyleViT):
    """Hands what its caller gives on to every block, as timm does."""

    def forward(self, images, **handed):
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x, **handed)
        return self.head(x[:, 0])


def build(name):
    """Return the tower called `name`, in eval mode."""
    torch.manual_seed(0)
    if name == "plain":
        return PlainViT(image_size=64, patch_size=8, width=48, depth=4, heads=3, stem=()).eval()
    if name.startswith("timm"):
        return TimmStyleViT("avg" if name == "timm-mean" else "token").eval()
    transformers = pytest.importorskip("transformers")
    wide = {**SHAPE, "intermediate_size": 96}
    layers = {**wide, "num_register_tokens": 4}
    makers = {
        "dinov3": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**layers, layerscale_value=0.3)),
        "dinov3-gated": lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**layers, use_gated_mlp=True, drop_path_rate=0.1)
        ),
        "siglip2": lambda: transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**wide, num_patches=64)),
        "videomae": lambda: transformers.VideoMAEForVideoClassification(
            transformers.VideoMAEConfig(**{**wide, "image_size": 32}, num_frames=8)
        ),
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**wide)),
        "vit-classifier": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**wide)),
        "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**wide)),
        "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**wide)),
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE, layerscale_value=0.3)),
        "dinov2-classifier": lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**SHAPE)),
        "registers": lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SHAPE, num_register_tokens=4)
        ),
    }
    return makers[name]().eval()


NAMES = [
    "plain",
    "vit",
    "vit-classifier",
    "clip",
    "siglip",
    "dinov2",
    "dinov2-classifier",
    "registers",
    "dinov3",
    "dinov3-gated",
    "timm",
    "timm-mean",
]
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def padded(real=(64, 48, 30)):
    """Return the inputs of a SigLIP 2 tower: pictures of 8x8, 6x8 and 5x6 patches, padded to 64."""
    draw = torch.Generator().manual_seed(2)
    mask = torch.stack([torch.arange(64) < count for count in real]).long()
    shapes = {64: (8, 8), 48: (6, 8), 30: (5, 6)}
    pixels = torch.randn(len(real), 64, 192, generator=draw)
    return {
        "pixel_values": pixels,
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([shapes[count] for count in real]),
    }


def output(model, images=IMAGES):
    """Return the main tensor of a model's output."""
    with torch.no_grad():
        out = model(images)
    return out if isinstance(out, torch.Tensor) else out[0]
