"""How important each token is: scores [B,N], higher is kept. None of them needs the whole attention matrix kept."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lessen.tokens.plans import inverse_norm

Scorer = Literal["class_attention", "received_attention", "class_similarity", "random"]


def class_attention(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Return the attention of the class token to every token, mean over heads, float32 [B,N].

    One query row is recomputed from the projections [B,N,H,d]: N*C multiply-adds instead of a score matrix, so that
    the fused attention kernel stays in use. `bias` [B,1,1,N] is what attention added to the keys' logits.
    """
    row: Tensor = torch.einsum("bhd,bnhd->bhn", query[:, 0].float(), key.float()) * query.shape[-1] ** -0.5
    if bias is not None:
        row = row + bias[:, 0]
    return torch.softmax(row, -1).mean(1)


def received_attention(query: Tensor, key: Tensor, bias: Tensor | None, hidden: Tensor | None = None) -> Tensor:
    """Return the attention each token receives, mean over heads and queries, float32 [B,N]; N*N*C multiply-adds.

    Queries of `hidden` tokens, boolean [B,N], do not count.
    """
    logits: Tensor = torch.einsum("bqhd,bkhd->bhqk", query.float(), key.float()) * query.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias
    given = torch.softmax(logits, -1).mean(1)
    if hidden is None:
        return given.mean(1)
    asks = (~hidden).to(given)[:, :, None]
    return (given * asks).sum(1) / asks.sum(1).clamp_min(1.0)


def class_similarity(hidden: Tensor, anchor: Tensor | None = None) -> Tensor:
    """Return the cosine of every token with the class token (GLSim, arXiv 2407.12891), float32 [B,N].

    `anchor` [B,C] takes the class token's place, such as the mean patch of a tower without one.
    """
    hidden = hidden.float()
    anchor = hidden[:, 0] if anchor is None else anchor.float()
    dots = (hidden @ anchor[..., None])[..., 0]
    return dots * inverse_norm(hidden)[..., 0] * inverse_norm(anchor)


def random_scores(batch: int, tokens: int, seed: int, layer: int) -> Tensor:
    """Return uniform noise [batch,tokens] that depends on seed, layer and position only: the same at every call."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + layer)
    return torch.rand(1, tokens, generator=generator).expand(batch, -1)
