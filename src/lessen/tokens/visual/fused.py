"""ADEM-VL: a picture is one token of the sequence and a memory that every layer looks at without parameters.

picture [n,D] -> grids of several sizes -> projector -> V [m,C];  K = silu(V + E1), U = V + E2, once a picture
layer: h -> FFN(h) + alpha * drop(silu(h) K^T) U
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.architectures.find import find_parts
from lessen.architectures.visual_host import VisualHost
from lessen.errors import InputError
from lessen.stored.base import stored
from lessen.tokens.visual.pictures import square
from lessen.tokens.visual.splice import Seen, Sight, SplicePatch, stored_values

ADAPTED = 0.1
"""Share of the tower's adapters in the sum, and their dropout."""


def fused(hidden: Tensor, key: Tensor, value: Tensor, drop: float) -> Tensor:
    """Return what text [B,t,C] takes from memories: scores silu(h) K^T, the lowest set to zero, times U.

    Args:
        key, value: [B,m,C].
        drop: gamma; in each row the int(gamma * m) lowest *signed* scores become zero, as published.
    """
    scores = F.silu(hidden) @ key.transpose(1, 2)
    rank = int(drop * key.shape[1])
    if rank:
        least = scores.detach().kthvalue(rank + 1, dim=-1, keepdim=True).values
        scores = torch.where(scores >= least, scores, torch.zeros_like(scores))
    return scores @ value


class Bridge(nn.Sequential):
    """Linear, SiLU, Linear with Xavier weights and no bias at the start: [..., D] to [..., C]."""

    def __init__(self, width: int, inner: int, text: int) -> None:
        ends = (nn.Linear(width, inner), nn.Linear(inner, text))
        super().__init__(ends[0], nn.SiLU(), ends[1])
        for layer in ends:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class TowerAdapter(nn.Module):
    """Beside the feed-forward layer of a tower block: 0.1 * fc2(dropout(gelu(fc1 x))), fc2 zero at the start."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added, of the shape of x."""
        inner = F.dropout(F.gelu(self.down(x)), ADAPTED, self.training)
        added: Tensor = ADAPTED * self.up(inner)
        return added


@stored
class ADEMVL(Sight):
    """One picture a prompt: one token of it in the sequence, the rest in a memory.

    ADEM-VL, 2024 (arXiv 2410.17779). The language model is the caller's to freeze. Differences: the picture is what the
    host's own tower gives its projector (no last norm), the class token is the tower's pooled output; K and U are made
    once a picture, not in every layer; a prompt without a picture is untouched, where the learned tables of the
    official code act on it too. There is no 1/sqrt(C) and no softmax: other widths need another `beta`.

    Args:
        width: D of the tower; text: C of the language model; layers: of the tower that get an adapter, from the first.
        sizes: tokens of the memory's grids, squares; inner: of the projectors; adapter: width of the tower's adapters.
        alpha: of the memory in each layer; beta: of the picture in the memory; drop: gamma.
    """

    kind = "adem-vl"
    child = "adem_vl"

    def __init__(
        self,
        width: int,
        text: int,
        layers: int = 0,
        sizes: Sequence[int] = (256, 64),
        inner: int = 128,
        adapter: int = 12,
        alpha: float = 0.1,
        beta: float = 0.01,
        drop: float = 0.1,
    ) -> None:
        super().__init__()
        if not sizes or any(square(size) is None or size < 1 for size in sizes):
            raise InputError(f"adem-vl: sizes {list(sizes)} are no squares; give the tokens of square grids")
        if not 0 <= drop < 1 or min(inner, adapter, width, text) < 1 or layers < 0:
            raise InputError(
                f"adem-vl: drop = {drop}, inner = {inner}, adapter = {adapter}, layers = {layers} make no sense"
            )
        self.values = {
            "width": width, "text": text, "layers": layers, "sizes": list(sizes), "inner": inner, "adapter": adapter,
            "alpha": alpha, "beta": beta, "drop": drop,
        }  # fmt: skip
        self.alpha, self.beta, self.drop, self.sizes = alpha, beta, drop, tuple(sizes)
        self.reads_pooled, self.width, self.inner = True, width, inner
        self.bridge, self.of_class = Bridge(width, inner, text), Bridge(width, inner, text)
        self.first = nn.Parameter(0.02 * torch.randn(sum(sizes), text))
        self.second = nn.Parameter(torch.zeros(sum(sizes), text))
        self.adapters = nn.ModuleList(TowerAdapter(width, adapter) for _ in range(layers))

    def config(self) -> dict[str, Any]:
        """Return JSON values."""
        return dict(self.values)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ADEMVL:
        """Build an empty twin. Raises TypeError or ValueError for values that make no sense."""
        with stored_values(config, ("alpha", "beta", "drop")):
            return cls(**config)

    def fits(self, host: VisualHost) -> None:
        """Raise InputError where the decoder has another width, or feed-forward layers that cannot be found."""
        if host.decoder.width != self.values["text"]:
            raise InputError(
                f"adem-vl was made for a language model of width {self.values['text']}, and {host.decoder.path} has "
                f"{host.decoder.width}"
            )
        feeds = [(block.path, block.feed_forward) for block in host.blocks]
        odd = next((path for path, feed in feeds if feed is None or feed.path == path), None)
        if odd is not None:
            raise InputError(f"adem-vl: {odd} has no feed-forward layer to stand beside")

    def added(self, patch: SplicePatch) -> list[Any]:
        """Return hooks of the memory in the decoder and of the adapters in the tower."""
        blocks = find_parts(patch.model, "vision-language").stacks["vision"].blocks
        if len(self.adapters) > len(blocks):
            raise InputError(f"adem-vl: {len(self.adapters)} adapters for a tower of {len(blocks)} layers")
        feeds = [block.feed_forward for block in (*patch.host.blocks, *blocks[: len(self.adapters)])]
        modules = [patch.model.get_submodule(feed.path) for feed in feeds if feed is not None]
        depth = len(patch.host.blocks)
        handles = [module.register_forward_hook(_Fuse(patch, self)) for module in modules[:depth]]
        beside = zip(modules[depth:], self.adapters, strict=True)
        return [*handles, *(module.register_forward_hook(_Beside(adapter)) for module, adapter in beside)]

    def see(self, seen: Seen) -> list[Tensor]:
        """Return the class token of each prompt's picture, and keep its memory."""
        many = next((row for row, count in enumerate(seen.counts) if count > 1), None)
        if many is not None:
            raise InputError(f"adem-vl: prompt {many} shows {seen.counts[many]} pictures, and one fits; give one")
        width = seen.features.shape[2]
        if width != self.width:
            raise InputError(f"adem-vl was made for a tower of width {self.width}, and this one gives {width}")
        assert seen.pooled is not None  # asked for
        memory = self.beta * self.bridge(self.pooled(seen.features))
        key, value = F.silu(memory + self.first), memory + self.second
        rows = torch.tensor([row for row, count in enumerate(seen.counts) if count], device=key.device)
        empty = key.new_zeros(len(seen.counts), *key.shape[1:])
        seen.memory = empty.index_copy(0, rows, key), empty.index_copy(0, rows, value)
        told: Tensor = self.of_class(seen.pooled)
        return seen.of_prompt(told)

    def pooled(self, features: Tensor) -> Tensor:
        """Return the grids of all sizes [P, m, D] of features [P, n, D]. Raises InputError: they are no square grid."""
        grid = square(features.shape[1])
        if grid is None or max(self.sizes) > features.shape[1]:
            raise InputError(
                f"adem-vl: {features.shape[1]} tokens of a picture are no square grid of at least {max(self.sizes)}; "
                "give smaller sizes"
            )
        maps = features.transpose(1, 2).reshape(len(features), features.shape[2], *grid)
        sides = [math.isqrt(size) for size in self.sizes]
        return torch.cat([F.adaptive_avg_pool2d(maps, side).flatten(2) for side in sides], 2).transpose(1, 2)

    def macs(self, words: int, layers: int) -> int:
        """Return multiply-adds of one picture and a prompt of `words` tokens beside the host's own."""
        text, inner, width = self.first.shape[1], self.inner, self.width
        size = sum(self.sizes)
        return layers * words * 2 * size * text + (size + 1) * inner * (width + text)


class _Fuse:
    """After a feed-forward layer of the decoder."""

    def __init__(self, patch: SplicePatch, sight: ADEMVL) -> None:
        self.patch, self.sight = patch, sight

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        memory = self.patch.remembered()
        if memory is None:
            return None
        key, value = memory
        return output + self.sight.alpha * fused(inputs[0], key, value, self.sight.drop)


class _Beside:
    """After a feed-forward layer of the tower."""

    def __init__(self, adapter: nn.Module) -> None:
        self.adapter = adapter

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        added: Tensor = output + self.adapter(inputs[0])
        return added
