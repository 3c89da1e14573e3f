"""SliME: a mixture of two views for the whole picture, few tokens for each tile, and of those what the words ask for.

overview [n,D] -> gate: projector(x), projector(R_n(x)) --------------------------------------------> n tokens
tiles  [S,n,D] -> R_g: [S, g*g, D] -> projector -> cosines with the words -> top p, or the best k --> separator + kept
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.architectures.visual_host import VisualHost
from lessen.errors import InputError
from lessen.stored.base import stored
from lessen.stored.checks import elements
from lessen.tokens.visual.choose import best
from lessen.tokens.visual.pictures import square
from lessen.tokens.visual.resampler import Resampler
from lessen.tokens.visual.splice import Seen, Sight, stored_values


def routed(
    tokens: Tensor, words: Tensor, top_p: float = 0.95, keep: int | None = None, temperature: float = 1.0
) -> Tensor:
    """Return the places of the tokens [n, C] that words [t, C] ask for, int64, ascending.

    A token's score is the sum of its cosines with the words. Taken are the best until their softmax reaches `top_p`,
    and one more; or the best `keep`. Scores that hardly differ keep nearly all: look at the counts.
    """
    scores = (F.normalize(tokens.float(), dim=-1) @ F.normalize(words.float(), dim=-1).T).sum(1)
    if keep is not None:
        return best(scores, min(keep, len(scores)))
    if top_p >= 1:
        return torch.arange(len(scores), device=scores.device)
    shares, order = (scores / temperature).softmax(0).sort(descending=True, stable=True)
    count = int((shares.cumsum(0) <= top_p).sum()) + 1
    return order[:count].sort().values


@stored
class SliME(Sight):
    """The first picture of each prompt is the overview, the others are its tiles; all have the same size.

    SliME, 2024 (arXiv 2406.08487). Trained: the gate, both resamplers, the separator; the host's projector serves all
    branches. Differences: the noise of the gate has a matrix of its own (the official code uses that of the gate), the
    separator is a parameter in place of the embedding of a token of one tokenizer, the overview's resampler has as many
    queries as the host's grid, words are the prompt's alone where the official training lets the answer choose too, and
    a fixed number `keep` can take the place of top p. Black tiles are the caller's to leave out.

    Args:
        width: D of the tower; text: C of the language model; heads: of the resamplers, None: width / 128, at least 1.
        side: of the grid of queries of a tile; overview: of that of the overview.
        keep: tokens of all tiles together; None: by `top_p`.
        video: pictures of a prompt are frames; their mean is the overview, and each is a tile as well, as published.
    """

    kind = "slime"
    child = "slime"

    def __init__(
        self,
        width: int,
        text: int,
        side: int = 12,
        overview: int = 24,
        heads: int | None = None,
        top_p: float = 0.95,
        keep: int | None = None,
        temperature: float = 1.0,
        video: bool = False,
    ) -> None:
        super().__init__()
        heads = max(1, width // 128) if heads is None else heads
        if min(width, text, side, overview, heads) < 1 or width % 4 or width % heads:
            raise InputError(
                f"slime: a width of {width} is no multiple of 4 and of {heads} heads, or a size is below 1"
            )
        if not 0 < top_p <= 1 or (keep is not None and keep < 1) or not temperature > 0:
            raise InputError(f"slime: top_p = {top_p}, keep = {keep}, temperature = {temperature} make no sense")
        self.values = {
            "width": width, "text": text, "side": side, "overview": overview, "heads": heads, "top_p": top_p,
            "keep": keep, "temperature": temperature, "video": video,
        }  # fmt: skip
        self.width, self.text, self.side, self.queries = width, text, side, overview**2
        self.video = video
        self.top_p, self.keep, self.temperature = top_p, keep, temperature
        self.local, self.wide = Resampler(side, width, heads), Resampler(overview, width, heads)
        self.gate, self.noise = (nn.Linear(width, 2, bias=False) for _ in range(2))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.noise.weight)
        self.separator = nn.Parameter(0.02 * torch.randn(text))
        self.stage: str = "all"
        """Of training: "mlp" and "attention" for one expert of the overview alone, "local" for tiles alone, "all"."""

    def config(self) -> dict[str, Any]:
        """Return JSON values."""
        return dict(self.values)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SliME:
        """Build an empty twin. Raises TypeError or ValueError for values that make no sense."""
        with stored_values(config, ("top_p", "temperature")):
            elements("queries of slime", config["width"], config["side"] ** 2 + config["overview"] ** 2)
            return cls(**config)

    def fits(self, host: VisualHost) -> None:
        """Raise InputError where the decoder has another width; the tower's is seen when it gives features."""
        if host.decoder.width != self.text:
            raise InputError(
                f"slime was made for a language model of width {self.text}, and {host.decoder.path} has "
                f"{host.decoder.width}"
            )

    def see(self, seen: Seen) -> list[Tensor]:
        """Return overview, separator and kept tokens of the tiles of each prompt."""
        width = seen.features.shape[2]
        if width != self.width:
            raise InputError(f"slime was made for a tower of width {self.width}, and this one gives {width}")
        grid = square(seen.features.shape[1])
        if grid is None:
            raise InputError(f"slime: {seen.features.shape[1]} tokens of a picture are no square grid")
        made = []
        for pictures, words in zip(seen.of_prompt(seen.features), seen.words, strict=True):
            if not len(pictures):
                made.append(words.new_zeros(0, self.text))
                continue
            whole, cut = (pictures.mean(0, keepdim=True), pictures) if self.video else (pictures[:1], pictures[1:])
            parts = [] if self.stage == "local" else [self.overview(whole, grid, seen)[0]]
            if len(cut) and self.stage in ("all", "local"):
                tiles = seen.project(self.local(cut, grid)).flatten(0, 1)
                asked = words if len(words) else tiles.new_zeros(1, tiles.shape[1])
                with torch.no_grad():
                    places = self.places(tiles, asked)
                parts += [self.separator[None], tiles[places]]
            made.append(torch.cat(parts) if parts else words.new_zeros(0, self.text))
        return made

    def places(self, tiles: Tensor, words: Tensor) -> Tensor:
        """Return which tokens of the tiles [n, C] go on, where the words are [t, C]; int64, ascending."""
        return routed(tiles, words, self.top_p, self.keep, self.temperature)

    def overview(self, picture: Tensor, grid: tuple[int, int], seen: Seen) -> Tensor:
        """Return the mixture [1, n, C] of both views of a picture [1, n, D]."""
        if self.stage == "mlp":
            return seen.project(picture)
        if self.queries != picture.shape[1]:
            raise InputError(
                f"slime: {self.queries} queries of the overview for {picture.shape[1]} tokens of the "
                f"tower; give overview = {math.isqrt(picture.shape[1])}"
            )
        wide = seen.project(self.wide(picture, grid))
        if self.stage == "attention":
            return wide
        logits = self.gate(picture)
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(self.noise(picture)) + 1e-2)
        share = logits.softmax(-1)
        share = share / (share.sum(-1, keepdim=True) + 1e-6)
        mixed: Tensor = share[..., :1] * seen.project(picture) + share[..., 1:] * wide
        return mixed

    def tokens(self, tiles: int, grid: int) -> int:
        """Return the most tokens that a picture with so many tiles takes, `grid` of the tower: n + 1 + S * side**2."""
        local = tiles * self.side**2
        return grid + (1 + (local if self.keep is None else min(local, self.keep)) if tiles else 0)

    def macs(self, tiles: int, grid: int, words: int, projector: int) -> int:
        """Return multiply-adds of one picture beside the tower.

        Args:
            grid: tokens of a picture that the tower gives; words: of the prompt; projector: multiply-adds a token.
        """
        queries = self.side**2
        whole = self.wide.macs(grid) + 2 * grid * projector + 2 * grid * self.width
        chosen = tiles * queries * words * self.text
        return whole + tiles * (self.local.macs(grid) + queries * projector) + chosen
