"""DiffRate's search (arXiv 2305.17997): per-block counts learnt by gradient, the network's weights frozen.

Every block owns two rates, one for pruning and one for merging. A rate is a softmax over candidate counts; its
expectation is rounded up with a straight-through gradient, and the probability that a rank survives is the gradient
of the mask. During the search nothing is removed: masked tokens are invisible as keys, except to themselves.

    x + attention(masked) -> sort by class attention -> prune mask -> merge the tail -> x + mlp
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.tower_block import TowerBlock
from lessen.architectures.vit import find_tower
from lessen.errors import InputError
from lessen.log import SILENT, Log
from lessen.tokens.arguments import require_only_tokens
from lessen.tokens.macs import TowerShape, full_macs, tower_macs
from lessen.tokens.plans import inverse_norm
from lessen.tokens.reducers import RankMerge
from lessen.tokens.rows import take
from lessen.train.fit import fit
from lessen.train.settings import FitSettings

EPSILON = 1e-6
FLOOR = 1.0
"""What a merged token counts for at least while rates are searched."""
SPREAD = 0.1
"""Width of the starting distribution of a rate, as a share of the patches."""


class Rate(nn.Module):
    """A learnable number of tokens among the candidates P, P-g, P-2g, ... > 0, class token not counted."""

    candidates: Tensor

    def __init__(self, patches: int, granularity: int, start: float) -> None:
        super().__init__()
        self.register_buffer("candidates", torch.arange(patches, 0, -granularity).float())
        # zero logits would keep half of the patches in every block; start around `start` patches instead
        distance = (self.candidates - start) / (SPREAD * patches)
        self.logits = nn.Parameter(-0.5 * distance**2)

    def probabilities(self) -> Tensor:
        """Return the probability of each candidate."""
        return self.logits.softmax(0)

    def kept(self) -> Tensor:
        """Return the count with the class token: ceil(expectation) + 1, gradient straight through."""
        expected = (self.probabilities() * self.candidates).sum()
        return expected + (torch.ceil(expected - 1e-6) - expected).detach() + 1.0

    def survival(self, tokens: int) -> Tensor:
        """Return for each rank 0..tokens-1 the probability that it is kept; 1 for the class token, never rising."""
        rank = torch.arange(tokens, device=self.candidates.device)
        inside = (self.candidates[:, None] + 1.0 > rank).float()
        return self.probabilities() @ inside

    def mask(self, kept: Tensor, live: int, tokens: int) -> Tensor:
        """Return the 0/1 mask of ranks [tokens] with the gradient of `survival`; ranks from `live` on are left 1."""
        rank = torch.arange(tokens, device=self.candidates.device)
        hard = ((rank < kept.detach()) | (rank >= live)).float()
        survival = self.survival(tokens)
        return hard - survival.detach() + survival


@dataclass
class MaskedState:
    """Tokens of one forward of the search."""

    mask: Tensor
    """[B,N], 1 for live tokens, with gradient."""
    size: Tensor
    """[B,N], at least 1."""


class MaskedForward:
    """What a block runs during the search."""

    def __init__(self, search: RateSearch, parts: TowerBlock, layer: int) -> None:
        self.search, self.parts, self.layer = search, parts, layer

    def __call__(self, x: Tensor, *others: Any, **keywords: Any) -> Tensor:
        """Run the block with masks instead of removal. Raises InputError for what it would not honour."""
        require_only_tokens(self.parts.block, others, keywords)
        state = self.search.state
        if state is None or self.layer == 0:
            state = MaskedState(*(torch.ones(x.shape[:2], dtype=x.dtype, device=x.device) for _ in range(2)))
        parts = self.parts
        out, row = masked_attention(parts, parts.norm1(x), state)
        x = x + parts.residual(1, out)
        if self.layer in self.search.compressed:
            x, state = self.search.compress(self.layer, x, row, state)
        self.search.state = state
        return parts.feed_forward(x)


def masked_attention(parts: TowerBlock, x: Tensor, state: MaskedState) -> tuple[Tensor, Tensor]:
    """Return attention output [B,N,C] in which masked tokens are no keys but to themselves, and the class row [B,N]."""
    query, key, value = parts.project(x)
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + state.size.log()[:, None, None, :]
    weight = (logits - logits.amax(-1, keepdim=True)).exp()
    own = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    mask = state.mask[:, None, None, :]
    weight = weight * (mask + (1.0 - mask) * own)
    attention = (weight + EPSILON / x.shape[1]) / (weight.sum(-1, keepdim=True) + EPSILON)
    return parts.project_out((attention @ value).transpose(1, 2).flatten(2)), attention[:, :, 0].mean(1)


class RateSearch(nn.Module):
    """The rates of all blocks of one tower, its masked forward and its differentiable multiply-add count."""

    def __init__(
        self, model: nn.Module, shape: TowerShape, *, granularity: int, target: float, skip_first: int = 1
    ) -> None:
        super().__init__()
        tower = find_tower(model)
        if tower.family.rotary:
            raise InputError(f"DiffRate's search does not turn by positions, as the blocks of {tower.path!r} do")
        if not tower.family.has_class or tower.protected != 1:
            raise InputError(f"DiffRate ranks by the class token; {tower.path!r} has {tower.protected} leading tokens")
        self.shape, self.blocks = shape, tower.blocks
        self.family = tower.family
        self.compressed = tuple(range(skip_first, shape.depth))
        slope = _slope(shape, self.compressed, target)
        patches = shape.tokens - 1
        self.prune, self.merge = nn.ModuleDict(), nn.ModuleDict()
        for number, layer in enumerate(self.compressed):
            # half of each block's removal starts as pruning, the whole of it as merging
            self.prune[str(layer)] = Rate(patches, granularity, max(1.0, patches - slope * (number + 0.5)))
            self.merge[str(layer)] = Rate(patches, granularity, max(1.0, patches - slope * (number + 1)))
        self.state: MaskedState | None = None

    # -- masked forward -----------------------------------------------------------------------------------------
    def __enter__(self) -> RateSearch:
        """Give the blocks the masked forward."""
        for layer, block in enumerate(self.blocks):
            block.__dict__["forward"] = MaskedForward(self, TowerBlock(block, self.family), layer)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the blocks their own forward back."""
        for block in self.blocks:
            block.__dict__.pop("forward", None)
        self.state = None

    def compress(self, layer: int, x: Tensor, row: Tensor, state: MaskedState) -> tuple[Tensor, MaskedState]:
        """Sort by class attention, mask what is pruned, merge the tail into the head and mask it too."""
        order = row.detach().clone()
        order[:, 0] = torch.inf
        order = order.argsort(dim=1, descending=True)
        x, mask, size = take(x, order), state.mask.gather(1, order), state.size.gather(1, order)
        tokens = x.shape[1]
        live = int(mask[0].detach().round().sum())
        prune, merge = self._rate(self.prune, layer), self._rate(self.merge, layer)
        kept = prune.kept()
        if int(kept) < live:
            mask = mask * prune.mask(kept, live, tokens)
            live = int(kept)
        kept = merge.kept()
        if int(kept) < live:
            x, size = merge_tail(x, size, int(kept), live)
            mask = mask * merge.mask(kept, live, tokens)
        return x, MaskedState(mask, size)

    @staticmethod
    def _rate(rates: nn.ModuleDict, layer: int) -> Rate:
        rate = rates[str(layer)]
        assert isinstance(rate, Rate)
        return rate

    # -- counting -----------------------------------------------------------------------------------------------
    def macs(self) -> Tensor:
        """Return the multiply-adds of one image, with gradient to every rate."""
        shape = self.shape
        tokens: Tensor = torch.tensor(float(shape.tokens))
        total: Tensor = torch.tensor(float(shape.patch_macs + shape.head_macs))
        for layer in range(shape.depth):
            total = total + 4 * tokens * shape.width**2 + 2 * tokens**2 * shape.width
            if layer in self.compressed:
                tokens = _least(tokens, self._rate(self.prune, layer).kept(), self._rate(self.merge, layer).kept())
            total = total + 2 * tokens * shape.width * shape.hidden
        return total

    def reducer(self, proportional: bool = True) -> RankMerge:
        """Return the counts found, as a reducer."""
        pruned, merged, left = [], [], self.shape.tokens
        for layer in range(self.shape.depth):
            if layer in self.compressed:
                first = min(left, int(self._rate(self.prune, layer).kept()))
                left = min(first, int(self._rate(self.merge, layer).kept()))
            else:
                first = left
            pruned.append(first)
            merged.append(left)
        return RankMerge(proportional=proportional, pruned=tuple(pruned), merged=tuple(merged))


def _slope(shape: TowerShape, compressed: tuple[int, ...], target: float) -> float:
    """Return how many tokens each block must remove so that an even schedule needs `target` of the multiply-adds."""
    low, high = 0.0, (shape.tokens - 2) / max(1, len(compressed))
    for _ in range(40):
        middle = (low + high) / 2
        counts, tokens = [], float(shape.tokens)
        for layer in range(shape.depth):
            tokens -= middle if layer in compressed else 0.0
            counts.append(round(tokens))
        low, high = (middle, high) if tower_macs(shape, counts) > target * full_macs(shape) else (low, middle)
    return high


def _least(tokens: Tensor, pruned: Tensor, merged: Tensor) -> Tensor:
    """Return the minimum; its gradient goes in full to both counts and not to `tokens`."""
    least = torch.minimum(torch.minimum(tokens, pruned), merged).detach()
    return least + (pruned - pruned.detach()) + (merged - merged.detach())


def merge_tail(x: Tensor, size: Tensor, kept: int, live: int) -> tuple[Tensor, Tensor]:
    """Average ranks kept..live-1 into their most similar head token; the tail stays in place.

    Each adds its size times its cosine, but 1 at least, as the published search has it; the network that is found adds
    less for unlike tokens (`plans.rank_and_merge`).
    """
    head, tail = x[:, :kept], x[:, kept:live]
    similarity = (tail * inverse_norm(tail)) @ (head * inverse_norm(head)).transpose(1, 2)
    similarity = similarity.detach()
    similarity[:, :, 0] = -torch.inf
    cosine, target = similarity.max(-1)
    count = torch.ones_like(size[:, :kept]).scatter_add(1, target, torch.ones_like(cosine))
    joined = head.scatter_add(1, target[..., None].expand_as(tail), tail) / count[..., None]
    added = (size[:, kept:live] * cosine).clamp(min=FLOOR)
    sizes = size[:, :kept].scatter_add(1, target, added)
    return torch.cat([joined, x[:, kept:]], 1), torch.cat([sizes, size[:, kept:]], 1)


def find_rates(
    search: RateSearch,
    loss: Callable[[Any], Tensor],
    batches: Callable[[int], Iterable[Any]],
    *,
    target: float,
    steps: int,
    learning_rate: float,
    weight: float,
    log: Log = SILENT,
) -> list[tuple[float, float]]:
    """Optimise the rates and return (task loss, multiply-add share) of every step.

    Args:
        loss: task loss of a batch; the model's weights must not require gradients.
        batches: gives the batches of pass 1, 2, ...
        target: wanted share of the full multiply-adds.
        weight: factor on (share - target)^2; the paper's 5 * (GFLOPs - target)^2 is about 100 for DeiT-S.

    Raises:
        TaskError: there are no batches.
    """
    full = float(full_macs(search.shape))
    history: list[tuple[float, float]] = []

    def total(_rates: nn.Module, batch: Any) -> Tensor:
        task_loss = loss(batch)
        share = search.macs() / full
        history.append((float(task_loss.detach()), float(share.detach())))
        return task_loss + weight * (share - target) ** 2

    settings = FitSettings(
        steps=steps,
        optimizer="adamw",
        learning_rate=learning_rate,
        schedule="cosine",
        minimum_learning_rate=0.1 * learning_rate,
        clip_norm=None,
    )
    # the rates alone, not the search, which holds the blocks: those stay in eval mode
    rates = nn.ModuleList([search.prune, search.merge])
    with search:
        fit(rates, batches=batches, loss=total, validate=None, settings=settings, log=log)
    return history
