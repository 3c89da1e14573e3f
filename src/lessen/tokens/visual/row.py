"""One row of attention: how much the last token of each prompt looks at given tokens, without an attention map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.architectures.parts import Block
from lessen.architectures.visual_host import VisualHost


def last_row(
    host: VisualHost, block: Block, hidden: Tensor, where: Tensor, tables: tuple[Tensor, Tensor] | None
) -> list[Tensor]:
    """Return the logits of the last token's attention to the tokens `where`, float32 [heads, n] for each prompt.

    Args:
        block: the layer whose queries and keys are asked.
        hidden: [B,N,C], what enters it.
        where: boolean [B,N]; n of them in a prompt.
        tables: cosines and sines [B or 1, N, d] of the rotary positions; None asks without positions.
    """
    attention, norm = block.attention, block.norms.before_attention
    assert attention is not None  # find_visual_host refuses others
    assert norm is not None
    rows, columns = where.nonzero(as_tuple=True)
    key = _heads(norm.module(hidden[rows, columns]), attention.key.module, attention.key_norm, attention.head_dim)
    query = _heads(norm.module(hidden[:, -1]), attention.query.module, attention.query_norm, attention.head_dim)
    if tables is not None:
        cosine, sine = (table.expand(len(hidden), -1, -1) for table in tables)
        key = _turned(host, key, cosine[rows, columns], sine[rows, columns])
        query = _turned(host, query, cosine[:, -1], sine[:, -1])
    scale = getattr(attention.module, "scaling", attention.head_dim**-0.5)
    groups = query.shape[1] // key.shape[1]
    query = (query.float() * scale).view(len(query), -1, groups, query.shape[-1])
    counts = where.sum(1).tolist()
    return [
        torch.einsum("kgd,nkd->kgn", one, keys.float()).flatten(0, 1)
        for one, keys in zip(query, torch.split(key, counts), strict=True)
    ]


def mean_attention(logits: Tensor) -> Tensor:
    """Return the attention to each of n tokens among themselves, mean over heads: [heads, n] to [n]."""
    return logits.softmax(-1).mean(0)


def _heads(x: Tensor, projection: Any, norm: Any, head_dim: int) -> Tensor:
    """Project [T,C] to heads [T,H,d]."""
    heads: Tensor = projection(x).view(len(x), -1, head_dim)
    if norm is not None:
        heads = norm.module(heads)
    return heads


def _turned(host: VisualHost, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn heads [T,H,d] by tables [T,d] with the host's own function, which wants [1,H,T,d] and [1,T,d]."""
    heads_first = x.transpose(0, 1)[None]
    turned: Tensor = host.turn(heads_first, heads_first, cosine[None], sine[None])[0]
    return turned[0].transpose(0, 1)
