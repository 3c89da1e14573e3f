"""Multiply-adds and bytes of reading a prompt with pictures, in closed form: decoder layers alone, as the papers count.

Norms, activations, softmax, the head and the vision tower are not counted; attention is counted whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lessen.architectures.visual_host import VisualHost


@dataclass(frozen=True)
class LayerShape:
    """What the count of one decoder layer depends on."""

    width: int
    queries: int
    """Outputs of the query projection, heads * head_dim."""
    keys: int
    """Outputs of the key projection, and of the value projection."""
    hidden: int
    gated: bool = True

    def macs(self, tokens: int) -> int:
        """Return multiply-adds of one layer on one prompt."""
        linear = self.width * (2 * self.queries + 2 * self.keys + (2 + self.gated) * self.hidden)
        return tokens * linear + 2 * tokens**2 * self.queries

    def score_macs(self, visual: int) -> int:
        """Return multiply-adds of the last token's attention row to `visual` tokens."""
        return self.width * (self.queries + visual * self.keys) + visual * self.queries

    def cache_bytes(self, tokens: int, element: int = 2) -> int:
        """Return bytes of keys and values of one prompt, `element` bytes each."""
        return 2 * tokens * self.keys * element


def shapes(host: VisualHost) -> list[LayerShape]:
    """Return the shape of every decoder layer of a host."""
    found = []
    for block in host.blocks:
        attention, layer = block.attention, block.feed_forward
        if attention is None or layer is None:
            raise ValueError(f"{block.path} has no attention or no plain feed-forward layer to count")
        query, key = (count * attention.head_dim for count in (attention.heads, attention.kv_heads))
        found.append(LayerShape(host.decoder.width, query, key, layer.hidden, layer.gate is not None))
    return found


def prefill_macs(layers: Sequence[LayerShape], tokens: Sequence[int], scored: Sequence[int] = ()) -> int:
    """Return multiply-adds of all decoder layers on one prompt.

    Args:
        tokens: that enter each layer.
        scored: visual tokens that are scored before each stage, at the layers' common shape.
    """
    own = sum(layer.macs(count) for layer, count in zip(layers, tokens, strict=True))
    return own + sum(layers[0].score_macs(visual) for visual in scored)
