"""Multiply-adds of a tower in closed form: linear layers, attention products, patch embedding and head.

Norms, softmax, activations and the matching itself (under 0.1 % of a block) are not counted, as is usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TowerShape:
    """What the count depends on."""

    tokens: int
    """Input tokens, class token and registers included."""
    width: int
    depth: int
    hidden: int
    """Width of the MLP's hidden layer."""
    patch_macs: int = 0
    """Multiply-adds of embedding one image."""
    head_macs: int = 0

    @classmethod
    def vit(cls, width: int, depth: int, patches: int, patch: int = 16, classes: int = 1000) -> TowerShape:
        """Return a published ViT: one class token, MLP ratio 4, RGB patches (embedding counted for all tokens)."""
        tokens = patches + 1
        return cls(tokens, width, depth, 4 * width, tokens * width * patch * patch * 3, width * classes)


def block_macs(shape: TowerShape, before: int, after: int) -> int:
    """Return multiply-adds of one block whose attention sees `before` tokens and whose MLP sees `after`."""
    attention = 4 * before * shape.width**2 + 2 * before**2 * shape.width
    return attention + 2 * after * shape.width * shape.hidden


def tower_macs(shape: TowerShape, counts: Sequence[int]) -> int:
    """Return multiply-adds of one image when `counts[l]` tokens are left after the reduction in block l."""
    total, before = shape.patch_macs + shape.head_macs, shape.tokens
    for after in counts:
        total += block_macs(shape, before, after)
        before = after
    return total


def full_macs(shape: TowerShape) -> int:
    """Return multiply-adds of one image without any reduction."""
    return tower_macs(shape, [shape.tokens] * shape.depth)
