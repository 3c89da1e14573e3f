"""The makers of row maps: merge pairs, keep some, fuse the rest into one, pool a grid, rank and merge."""

from __future__ import annotations

import torch
from torch import Tensor

from lessen.errors import InputError
from lessen.tokens.rows import Plan

TINY = 1e-12
"""Floor of a squared norm: a zero key then matches with similarity 0 instead of NaN."""

BEYOND = 2.0
"""More than any cosine."""


def inverse_norm(x: Tensor) -> Tensor:
    """Return 1 / |x| over the last dimension, kept as a dimension of 1."""
    return x.square().sum(-1, keepdim=True).clamp_min(TINY).rsqrt()


def match_alternating(
    metric: Tensor, removed: int, protected: int, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Pair even tokens with their most similar odd token and return the `removed` most similar pairs.

    Args:
        metric: [B,N,d]; similarity is the cosine. The first `protected` tokens are never part of a pair.
        hidden: boolean [B,N], tokens that stand for nothing: they are merged away first, and nothing goes to them.

    Returns:
        source, int64 [B,removed]: indices among the even tokens; target, int64 [B,removed]: among the odd tokens.
    """
    # at batch 1 what an operator costs is its call, so protected rows are cut off instead of masked
    metric = metric.detach()
    metric = metric * inverse_norm(metric)
    hidden_even, hidden_odd = (protected + 1) // 2, protected // 2
    even, odd = metric[:, 2 * hidden_even :: 2], metric[:, 2 * hidden_odd + 1 :: 2]
    similarity = torch.bmm(even, odd.transpose(1, 2))
    if hidden is not None:
        similarity = similarity.masked_fill(hidden[:, None, 2 * hidden_odd + 1 :: 2], -BEYOND)
        similarity = similarity.masked_fill(hidden[:, 2 * hidden_even :: 2, None], BEYOND)
    best, target = similarity.max(-1)
    source = best.topk(removed, dim=-1, sorted=False).indices
    target = target.gather(1, source)
    return source + hidden_even if hidden_even else source, target + hidden_odd if hidden_odd else target


def merge_similar(metric: Tensor, removed: int, protected: int, hidden: Tensor | None = None) -> Plan:
    """Merge the `removed` most similar pairs of even and odd tokens; `metric` is [B,N,d], `hidden` as in matching."""
    return merge_pairs(metric.shape[1], *match_alternating(metric, removed, protected, hidden), protected)


def match_random(batch: int, tokens: int, removed: int, protected: int, draw: Tensor) -> tuple[Tensor, Tensor]:
    """Pair random even tokens with random odd ones; `draw` is uniform noise [batch, tokens]. The control of merging."""
    even, odd = (tokens + 1) // 2, tokens // 2
    hidden_even, hidden_odd = (protected + 1) // 2, protected // 2
    scores = draw[:, :even].clone()
    scores[:, :hidden_even] = -torch.inf
    source = scores.topk(removed, dim=-1).indices
    target = hidden_odd + (draw[:, even:][:, :1] + draw.gather(1, source)).frac() * (odd - hidden_odd)
    return source, target.long().clamp(max=odd - 1).expand(batch, -1)


def merge_pairs(tokens: int, source: Tensor, target: Tensor, protected: int = 1) -> Plan:
    """Merge each even `source` into its odd `target`; order: protected ones, surviving even tokens, then all odd ones.

    Interleaving is deliberate: the next block splits even/odd again, so that new pairs are compared.
    """
    batch, removed = source.shape
    even = (tokens + 1) // 2
    leading_odd = protected // 2
    survives = torch.ones(batch, even, dtype=torch.long, device=source.device).scatter(1, source, 0)
    row = torch.empty(batch, tokens, dtype=torch.long, device=source.device)
    # odd leading tokens stand before the even ones that follow them: all even places move on by as many
    row[:, ::2] = (survives.cumsum(1) - 1 + leading_odd).scatter(1, source, target + (even - removed))
    row[:, 1::2] = torch.arange(even - removed, tokens - removed, device=source.device)
    if leading_odd:
        row[:, :protected] = torch.arange(protected, device=source.device)
    return Plan(row, tokens - removed)


def keep_best(scores: Tensor, kept: int, protected: int, fuse: bool = False, hidden: Tensor | None = None) -> Plan:
    """Keep the protected tokens and the best others, in image order; drop the rest or fuse it into one token.

    Args:
        scores: [B,N]; those of protected tokens are ignored.
        hidden: boolean [B,N], tokens that stand for nothing: the last to be kept, and no part of the fused one.
        kept: tokens kept, protected ones included, the fused token not.
        fuse: append the sum of the rest, each weighted by its raw score (EViT does not normalise).
    """
    tokens = scores.shape[1]
    ranks = scores if hidden is None else scores.masked_fill(hidden, -torch.inf)
    body = ranks[:, protected:]
    chosen = protected + body.topk(kept - protected, dim=-1).indices.sort(-1).values
    source = torch.cat([_leading(scores, protected), chosen], 1)
    rest = kept if fuse else -1
    places = torch.arange(kept, device=scores.device).expand(scores.shape[0], -1)
    row = torch.full((scores.shape[0], tokens), rest, dtype=torch.long, device=scores.device).scatter(1, source, places)
    if not fuse:
        return Plan(row, kept, source=source, drops=True)
    each = scores.float() if hidden is None else scores.float().masked_fill(hidden, 0.0)
    weight = torch.where(row == kept, each, 1.0)
    return Plan(row, kept + 1, weight=weight)


def _leading(like: Tensor, count: int) -> Tensor:
    return torch.arange(count, device=like.device).expand(like.shape[0], -1)


def rank_and_merge(scores: Tensor, hidden: Tensor, pruned: int, merged: int, protected: int) -> Plan:
    """Sort by score, prune to `pruned` tokens, and merge those ranked beyond `merged` into the similar head token.

    This is DiffRate's step (arXiv 2305.17997): features become the plain mean of a group, sizes are summed after
    multiplying each merged one by its cosine. The factor is clamped to [0, 1] here, where its code lets a negative
    cosine drive a size below 1; sizes are counts and carry no gradient.

    Args:
        scores: [B,N]; hidden: [B,N,C], the features that are compared; counts include the protected tokens.
    """
    tokens = scores.shape[1]
    # the leading tokens are set before the others and not lifted above them: equal scores would come in any order
    ranked = protected + scores[:, protected:].topk(pruned - protected, dim=-1).indices
    order = torch.cat([_leading(scores, protected), ranked], 1)
    head, tail = order[:, :merged], order[:, merged:pruned]
    places = torch.arange(merged, device=scores.device).expand(scores.shape[0], -1)
    row = torch.full(scores.shape, -1, dtype=torch.long, device=scores.device).scatter(1, head, places)
    if pruned == merged:
        return Plan(row, merged, source=head, drops=pruned < tokens)
    unit = hidden * inverse_norm(hidden)
    at = order[..., None].expand(-1, -1, hidden.shape[-1])
    unit = unit.gather(1, at)
    similarity = unit[:, merged:pruned] @ unit[:, :merged].transpose(1, 2)
    if protected:
        similarity = similarity.masked_fill(places[:1] < protected, -torch.inf)
    cosine, target = similarity.max(-1)
    row = row.scatter(1, tail, target)
    share = torch.ones_like(scores, dtype=torch.float32).scatter(1, tail, cosine.detach().float().clamp(0.0, 1.0))
    plain = Plan(row, merged, drops=pruned < tokens)
    return Plan(row, merged, weight=plain.mean_weights(), share=share, drops=pruned < tokens)


def pool_grid(grid: tuple[int, int], target: tuple[int, int], protected: int, batch: int) -> Plan:
    """Average the patches of each window; windows must be disjoint, so the target divides the grid.

    Raises:
        InputError: the target does not divide the grid (its windows would overlap; use `pool_features`).
    """
    (height, width), (rows, columns) = grid, target
    if height % rows or width % columns:
        raise InputError(f"a {height}x{width} grid has no disjoint {rows}x{columns} windows; choose divisors of it")
    cell_row = torch.arange(height) // (height // rows)
    cell_column = torch.arange(width) // (width // columns)
    cell = cell_row[:, None] * columns + cell_column
    row = torch.cat([torch.arange(protected), protected + cell.flatten()])
    return Plan(row.expand(batch, -1), protected + rows * columns)
