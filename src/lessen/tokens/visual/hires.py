"""HiRes-LLaVA: slices of one picture that see each other inside the tower, and queries made of the features themselves.

tower layer:  slices [S,L,D] -> map [D, rows*h, columns*w] -> + depth-wise 3x3 + attention on a small map -> slices
after it:     map -> windows' means are the queries, the whole map keys and values -> [M,D] -> projector
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
from lessen.tokens.visual.tiles import Grid, fold, unfold


class SliceRestore(nn.Module):
    """Patches of all slices of a picture laid side by side: F + depth-wise 3x3 + attention on an h x w map, scaled up.

    Both branches end in weights of zero, so that a new adapter changes no bit.

    Args:
        width: D; bottleneck: width of the attention; heads: of it.
    """

    def __init__(self, width: int, bottleneck: int, heads: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        nn.init.zeros_(self.local.weight)
        self.down = nn.Linear(width, bottleneck, bias=False)
        self.attention = nn.MultiheadAttention(bottleneck, heads, bias=False, batch_first=True)
        self.up = nn.Linear(bottleneck, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, maps: Tensor, small: Grid) -> Tensor:
        """Return maps [B, D, H, W] restored, attention on `small`."""
        low = self.down(F.adaptive_avg_pool2d(maps, small).flatten(2).transpose(1, 2))
        low = (
            self.up(self.attention(low, low, low, need_weights=False)[0]).transpose(1, 2).reshape(len(maps), -1, *small)
        )
        wide = F.interpolate(low, maps.shape[2:], mode="bilinear", align_corners=False)
        out: Tensor = maps + self.local(maps) + wide
        return out

    def macs(self, whole: int, small: int) -> int:
        """Return multiply-adds of one picture of `whole` patches, of which `small` are attended."""
        width, inner = self.down.in_features, self.down.out_features
        return 9 * width * whole + 2 * small * width * inner + 4 * small * inner**2 + 2 * small**2 * inner


class SelfMining(nn.Module):
    """Means of windows look at the whole map they are means of: [B, D, H, W] to [B, M, D]; no learned query.

    A new sampler is the pooling alone: its output projection is zero.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_query, self.norm_key = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
        nn.init.zeros_(self.attention.out_proj.weight)

    def forward(self, maps: Tensor, target: Grid) -> Tensor:
        """Return the tokens of a `target` grid, rows one after another."""
        pooled = F.adaptive_avg_pool2d(maps, target).flatten(2).transpose(1, 2)
        whole = self.norm_key(maps.flatten(2).transpose(1, 2))
        out: Tensor = pooled + self.attention(self.norm_query(pooled), whole, whole, need_weights=False)[0]
        return out

    def macs(self, whole: int, queries: int) -> int:
        """Return multiply-adds of one picture of `whole` patches."""
        width = self.norm_key.normalized_shape[0]
        return width**2 * (2 * queries + 2 * whole) + 2 * queries * whole * width


@stored
class HiResLLaVA(Sight):
    """Each picture is given as its overview and its slices, row by row; all have the same size.

    HiRes-LLaVA, 2024 (arXiv 2407.08706), whose code and paper were not at hand: this follows two summaries of it. Ours
    are: where in the tower the adapters stand (before every `every`-th layer), the residual sums, the bilinear way up,
    zeros at the start, the bottleneck, no class token in the map, the separator as a parameter, and one grid of slices
    a model. Slices of a letterboxed picture that are all black are not masked.

    Args:
        width: D of the tower; text: C of the language model; grid: rows and columns of slices.
        target: rows and columns of tokens of all slices together.
        layers: of the tower, before which an adapter stands, from 0.
        bottleneck: of the adapters, None: a quarter of D; heads: of all attentions, None: D / 64, at least 1.
        overview: whether a picture comes with one; without, its slices are all there is of it.
    """

    kind = "hires-llava"
    child = "hires_llava"

    def __init__(
        self,
        width: int,
        text: int,
        grid: Sequence[int],
        target: Sequence[int],
        layers: Sequence[int] = (),
        bottleneck: int | None = None,
        heads: int | None = None,
        overview: bool = True,
    ) -> None:
        super().__init__()
        heads = max(1, width // 64) if heads is None else heads
        inner = max(heads, width // 4 // max(1, heads) * heads) if bottleneck is None else bottleneck
        sizes = (*grid, *target, heads, inner, width, text)
        if len(grid) != 2 or len(target) != 2 or min(sizes) < 1 or width % heads or inner % heads:
            raise InputError(
                f"hires-llava: grid {list(grid)}, target {list(target)}, {heads} heads of widths {width} and {inner} "
                "do not fit; give rows and columns, and widths that the heads divide"
            )
        self.values = {
            "width": width, "text": text, "grid": list(grid), "target": list(target), "layers": list(layers),
            "bottleneck": inner, "heads": heads, "overview": overview,
        }  # fmt: skip
        self.width, self.text, self.ahead = width, text, int(overview)
        self.grid: Grid = (grid[0], grid[1])
        self.target: Grid = (target[0], target[1])
        self.adapters = nn.ModuleDict({str(layer): SliceRestore(width, inner, heads) for layer in layers})
        self.sampler = SelfMining(width, heads)
        self.separator = nn.Parameter(0.02 * torch.randn(text))

    def config(self) -> dict[str, Any]:
        """Return JSON values."""
        return dict(self.values)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HiResLLaVA:
        """Build an empty twin. Raises TypeError or ValueError for values that make no sense."""
        with stored_values(config):
            return cls(**config)

    @property
    def slices(self) -> int:
        """Slices of a picture."""
        return self.grid[0] * self.grid[1]

    def fits(self, host: VisualHost) -> None:
        """Raise InputError where the decoder has another width, or the tower too few layers."""
        if host.decoder.width != self.text:
            raise InputError(
                f"hires-llava was made for a language model of width {self.text}, and {host.decoder.path} "
                f"has {host.decoder.width}"
            )

    def added(self, patch: SplicePatch) -> list[Any]:
        """Return hooks of the adapters in the layers of the tower."""
        if not self.adapters:
            return []
        blocks = find_parts(patch.model, "vision-language").stacks["vision"].blocks
        beyond = next((name for name in self.adapters if int(name) >= len(blocks)), None)
        if beyond is not None:
            raise InputError(f"hires-llava: an adapter before layer {beyond} of a tower of {len(blocks)} layers")
        return [
            blocks[int(name)].module.register_forward_pre_hook(_Restore(self, name), with_kwargs=True)
            for name in self.adapters
        ]

    def see(self, seen: Seen) -> list[Tensor]:
        """Return overview, separator and the sampled map of the slices, for each prompt."""
        width = seen.features.shape[2]
        if width != self.width:
            raise InputError(f"hires-llava was made for a tower of width {self.width}, and this one gives {width}")
        made = []
        for row, pictures in enumerate(seen.of_prompt(seen.features)):
            self.check_groups(len(pictures), f"prompt {row}")
            parts = [seen.words[row].new_zeros(0, self.text)]
            for shown in torch.split(pictures, self.ahead + self.slices):
                if not len(shown):
                    continue
                if self.ahead:
                    parts += [seen.project(shown[0]), self.separator[None]]
                maps = fold(shown[self.ahead :], self.grid, _side(shown.shape[1]))
                parts.append(seen.project(self.sampler(maps, self.target)[0]))
            made.append(torch.cat(parts))
        return made

    def check_groups(self, found: int, where: str) -> None:
        """Raise InputError unless so many pictures are overviews with their slices."""
        if found % (self.ahead + self.slices):
            raise InputError(
                f"{where} shows {found} pictures, and the grid of slices is {self.grid[0]}x{self.grid[1]}; give each "
                f"picture as {'its overview and ' if self.ahead else ''}{self.slices} slices"
            )

    def tokens(self, overview: int) -> int:
        """Return the tokens of a sliced picture whose overview would have so many."""
        return self.ahead * (overview + 1) + self.target[0] * self.target[1]


class _Restore:
    """Before a layer of the tower: slices of the pictures of this call see each other."""

    def __init__(self, sight: HiResLLaVA, name: str) -> None:
        self.sight, self.name = sight, name

    def __call__(self, _module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        hidden = arguments[0] if arguments else keywords["hidden_states"]
        restored = self.restored(hidden)
        if arguments:
            return (restored, *arguments[1:]), keywords
        return arguments, {**keywords, "hidden_states": restored}

    def restored(self, hidden: Tensor) -> Tensor:
        """Return hidden states [P, (1 +) L, D] with the slices of each picture restored."""
        ahead, group = self.sight.ahead, self.sight.ahead + self.sight.slices
        self.sight.check_groups(len(hidden), "the batch")
        side = math.isqrt(hidden.shape[1])
        leading = hidden.shape[1] - side * side  # a class token, where there is one
        shown = hidden.reshape(-1, group, *hidden.shape[1:])
        maps = fold(shown[:, ahead:, leading:].flatten(0, 1), self.sight.grid, (side, side))
        tiles = unfold(self.sight.adapters[self.name](maps, (side, side)), self.sight.grid)
        tiles = tiles.reshape(len(shown), group - ahead, -1, hidden.shape[2])
        restored = torch.cat([shown[:, ahead:, :leading], tiles], 2)
        return torch.cat([shown[:, :ahead], restored], 1).flatten(0, 1)


def _side(tokens: int) -> Grid:
    grid = square(tokens)
    if grid is None:
        raise InputError(f"hires-llava: {tokens} tokens of a slice are no square grid")
    return grid
