"""Free Video-LLM: frames and regions that a question asks for in detail, all frames coarsely; nothing is trained.

frames [T,n,D] -> projector -> [T,n,C]
  slow    the `slow` frames nearest to the words, by time; of two neighbours in a row the larger; region of interest
  middle  `middle` frames evenly spaced, the same pooling, the same kind of region
  fast    all frames (or the `fast` nearest), averaged to a small grid
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lessen.errors import InputError
from lessen.stored.base import stored
from lessen.tokens.visual.pictures import square
from lessen.tokens.visual.splice import Seen, Sight, stored_values

Grid = tuple[int, int]
Scorer = Callable[[int, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Number of the prompt, its frames' features [T, n, D] and pooled outputs [T, D], to scores [T] and [T, n]."""
STRING = re.compile(
    r"slow_(\d+)frms_spatial_1d_max_pool_roi(\d+)-middle_(\d+)frms_spatial_1d_max_pool_\d+x\d+-fast_(\d+)frms_(\d+)x(\d+)"
)


@dataclass(frozen=True)
class Paths:
    """How many tokens go which way."""

    slow: int = 3
    """Frames that the words choose."""
    middle: int = 5
    """Frames evenly spaced."""
    fast: int = 50
    """Frames of the coarse path; all where there are fewer."""
    coarse: Grid = (4, 4)
    """Grid of a frame on the coarse path."""
    roi: float = 0.8
    """Share of a pooled frame that the region of interest covers on the first two paths; 1: all of it."""
    official: bool = False
    """The published geometry: rows and columns of the pooled map exchanged, so that the region is no rectangle."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        counts = (self.slow, self.middle, self.fast)
        if min(counts) < 0 or not sum(counts) or not 0 < self.roi <= 1 or min(self.coarse) < 1:
            raise InputError(f"paths {self} make no sense: give frames, a coarse grid, and a region in 0 .. 1")

    @classmethod
    def parse(cls, text: str) -> Paths:
        """Read the published string; the size of the middle path in it is not used there either.

        Raises:
            InputError: it is another string.
        """
        found = STRING.fullmatch(text)
        if found is None:
            raise InputError(
                f"{text!r} does not read slow_<a>frms_spatial_1d_max_pool_roi<q>-middle_<b>frms_spatial_1d_max_pool_"
                "<h>x<w>-fast_<c>frms_<u>x<v>"
            )
        slow, roi, middle, fast, rows, columns = map(int, found.groups())
        return cls(slow, middle, fast, (rows, columns), roi / 10, official=True)

    def box(self, grid: Grid) -> Grid:
        """Return rows and columns of the region of interest in a pooled map of a frame of `grid` tokens."""
        rows, columns = _pooled(grid)
        if self.official:
            rows, columns = columns, rows
        if self.roi >= 1:
            return rows, columns
        return max(1, round(rows * self.roi**0.5)), max(1, round(columns * self.roi**0.5))

    def tokens(self, frames: int, grid: Grid) -> int:
        """Return the visual tokens of a video of so many frames."""
        rows, columns = self.box(grid)
        detailed = min(self.slow, frames) + min(self.middle, frames)
        return detailed * rows * columns + min(self.fast, frames) * self.coarse[0] * self.coarse[1]


def sampled(total: int, frames: int) -> list[int]:
    """Return `frames` places among `total` frames of a video: the middles of even stretches, as published."""
    if total < 1 or frames < 1:
        raise InputError(f"{frames} frames of a video of {total} cannot be taken; give at least 1 of 1")
    step = (total - 1) / frames
    ends = [round(step * at) for at in range(frames + 1)]
    return [(before + after) // 2 for before, after in itertools.pairwise(ends)]


def nearest_frames(scores: Tensor, keep: int) -> Tensor:
    """Return the places of the `keep` best frames of scores [T], in the order of time; none where `keep` is 0."""
    order = scores.argsort(descending=True, stable=True)
    return order[: min(keep, len(order))].sort().values


def even_frames(frames: int, keep: int) -> Tensor:
    """Return `keep` places, at linspace(0, frames, keep + 1)[:-1] rounded down; never more than there are frames."""
    keep = min(keep, frames)
    return (torch.arange(keep) * frames) // max(1, keep)


def pair_pooled(tokens: Tensor, grid: Grid) -> Tensor:
    """Return the larger of each two neighbours in a row: [T, h*w, C] to [T, h * (w // 2), C]."""
    rows, columns = grid
    if columns < 2:
        return tokens
    cut = tokens.reshape(len(tokens), rows, columns, tokens.shape[2])[:, :, : 2 * (columns // 2)]
    return cut.reshape(len(tokens), rows * (columns // 2), 2, tokens.shape[2]).amax(2)


def region(scores: Tensor, grid: Grid, box: Grid, share: float) -> Tensor:
    """Return the places of the box around the best share of each frame's scores [T, h*w], int64 [T, box].

    The box's centre is the mean row and column of the best int(share * h*w) places, rounded down; it is moved inside.
    """
    (rows, columns), (high, wide) = grid, box
    points = scores.argsort(dim=1, descending=True, stable=True)[:, : max(1, int(rows * columns * share))]
    middle = ((points // columns).float().mean(1).int(), (points % columns).float().mean(1).int())
    top = (middle[0] - high // 2).clamp(0, rows - high)
    left = (middle[1] - wide // 2).clamp(0, columns - wide)
    down = torch.arange(high, device=scores.device) + top[:, None]
    across = torch.arange(wide, device=scores.device) + left[:, None]
    return (down[:, :, None] * columns + across[:, None]).flatten(1)


def video_tokens(tokens: Tensor, grid: Grid, frame_scores: Tensor, patch_scores: Tensor, paths: Paths) -> Tensor:
    """Return what a language model sees of a video: slow, middle and fast tokens [m, C], each path in time order.

    Args:
        tokens: [T, h*w, C], projected; grid: h and w.
        frame_scores: [T]; patch_scores: [T, h*w], how near each frame and each token is to the words.

    Raises:
        InputError: there is no frame, or the tokens are no such grid.
    """
    frames = len(tokens)
    if not frames:
        raise InputError("a video of 0 frames shows nothing; give at least one frame")
    if tokens.shape[1] != grid[0] * grid[1]:
        raise InputError(f"{tokens.shape[1]} tokens of a frame are no {grid[0]}x{grid[1]} grid")
    pooled, near = pair_pooled(tokens, grid), pair_pooled(patch_scores[:, :, None], grid)[:, :, 0]
    small, box = _pooled(grid), paths.box(grid)
    parts = []
    for chosen in (nearest_frames(frame_scores, paths.slow), even_frames(frames, paths.middle).to(tokens.device)):
        own = pooled[chosen]
        if paths.roi < 1 and len(chosen):
            shape = small[::-1] if paths.official else small
            places = region(near[chosen], (shape[0], shape[1]), box, paths.roi)
            own = own.gather(1, places[:, :, None].expand(-1, -1, own.shape[2]))
        parts.append(own.flatten(0, 1))
    ahead = nearest_frames(frame_scores, paths.fast)
    maps = tokens[ahead].transpose(1, 2).reshape(len(ahead), tokens.shape[2], *grid)
    parts.append(F.adaptive_avg_pool2d(maps, paths.coarse).flatten(2).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


@stored
class FreeVideoLLM(Sight):
    """All pictures of a prompt are the frames of one video, in order.

    Free Video-LLM, 2024 (arXiv 2410.10441). Differences: nearness of frames and tokens to the words is measured in the
    language model's own space (cosine of projected tokens with the mean of the prompt's word embeddings), which needs
    no second tower and can be stored; `clip_scorer` takes a dual encoder's, as the paper has them. The region is
    a true rectangle unless `official`. Positions are not scaled for long contexts: give a host that reads far enough.

    Args:
        scorer: of frames and tokens, such as `clip_scorer`; None: the host's own space. It is not stored.
    """

    kind = "free-video-llm"
    child = "free_video_llm"
    reads_pooled = True

    def __init__(self, paths: Paths, scorer: Scorer | None = None) -> None:
        super().__init__()
        self.paths, self.scorer = paths, scorer
        self.reads_pooled = scorer is not None

    def config(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self.paths) | {"coarse": list(self.paths.coarse)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FreeVideoLLM:
        """Build from `config()`. Raises TypeError or ValueError for values that make no sense."""
        with stored_values(config, ("roi",)):
            rows, columns = config.get("coarse", (4, 4))
            return cls(Paths(**{**config, "coarse": (rows, columns)}))

    def see(self, seen: Seen) -> list[Tensor]:
        """Return the tokens of each prompt's video."""
        grid = square(seen.features.shape[1])
        if grid is None:
            raise InputError(f"free-video-llm: {seen.features.shape[1]} tokens of a frame are no square grid")
        made: list[Tensor] = []
        pooled = [None] * len(seen.counts) if seen.pooled is None else seen.of_prompt(seen.pooled)
        for frames, whole, words in zip(seen.of_prompt(seen.features), pooled, seen.words, strict=True):
            if not len(frames):
                made.append(words.new_zeros(0, words.shape[1]))
                continue
            tokens = seen.project(frames)
            scores = self.scorer(len(made), frames, whole) if self.scorer else own_scores(tokens, words)
            made.append(video_tokens(tokens, grid, *scores, self.paths))
        return made


def clip_scorer(dual: Any, questions: Tensor, longest: int = 77) -> Scorer:
    """Return a scorer by the text tower of a dual encoder whose vision tower the host shares.

    The host's own pass gives the pictures' side, which the official code runs a second time. Tokens are of the layer
    that the host reads, not of the last one.

    Args:
        dual: a Hugging Face CLIPModel; only its text tower and both projections are used.
        questions: ids int64 [B, L] of the dual encoder's tokenizer, cut to `longest`.

    Raises:
        InputError: the projection reads another width than the host's tower gives, or it pools nothing.
    """
    with torch.no_grad():
        texts = dual.text_projection(dual.text_model(input_ids=questions[:, :longest]).pooler_output)
    bridge = dual.visual_projection

    def score(row: int, frames: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        if pooled is None or pooled.shape[1] != bridge.in_features or frames.shape[2] != bridge.in_features:
            raise InputError(
                f"the dual encoder projects a width of {bridge.in_features}, and the host's tower gives "
                f"{frames.shape[2]}{' and pools nothing' if pooled is None else ''}; take the one it was made of"
            )
        asked = F.normalize(texts[row].float(), dim=0)
        seen = (F.normalize(bridge(one).float(), dim=-1) @ asked for one in (pooled, frames))
        return next(seen), next(seen)

    return score


def own_scores(tokens: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines of frames [T] and of tokens [T, n] with the mean of the words [t, C], tokens [T, n, C]."""
    asked = words.float().mean(0) if len(words) else words.new_zeros(words.shape[1])
    asked = F.normalize(asked, dim=0)
    return F.normalize(tokens.float().mean(1), dim=-1) @ asked, F.normalize(tokens.float(), dim=-1) @ asked


def _pooled(grid: Grid) -> Grid:
    return (grid[0], grid[1] // 2) if grid[1] > 1 else grid
