"""SwinBERT's sparse attention mask: one table of gates says which video tokens look at which, and a penalty shuts it.

bias [T+N, T+N]     text: causal among itself, open to the video;  video: shut to the text, gated among itself
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.errors import InputError
from lessen.stored.base import StoredModule, stored
from lessen.tokens.visual.splice import stored_values

Mode = Literal["log", "paper"]
SHUT = -10_000.0
TINY = 1e-6


@stored
class VideoGates(StoredModule):
    """Gates between N video tokens, the same in all layers, heads and samples; a token always sees itself.

    SwinBERT, CVPR 2022 (arXiv 2111.13196): a = sigmoid(W), and the bias is -10000 (1 - a), under which a gate of 0.5
    is shut to the last bit and gets no gradient from the task (`mode="paper"`, for parity). `mode="log"` adds log a: a
    gate weighs attention by a, and every gate learns. Leave W out of weight decay, which pulls it to half open. A dense
    kernel saves nothing by a mask; `gathered_attention` does.
    """

    kind = "video-gates"

    def __init__(self, tokens: int, mode: Mode = "log") -> None:
        super().__init__()
        if tokens < 1 or mode not in get_args(Mode):
            raise InputError(f"gates of {tokens} tokens in mode {mode!r}: give at least 1, and log or paper")
        self.mode: Mode = mode
        self.weight_of_gates = nn.Parameter(torch.randn(tokens, tokens))

    def config(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"tokens": len(self.weight_of_gates), "log": self.mode == "log"}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VideoGates:
        """Build an empty twin. Raises TypeError or ValueError for values that make no sense."""
        with stored_values(config):
            return cls(config["tokens"], "log" if config["log"] else "paper")

    def open(self) -> Tensor:
        """Return how open each pair is, [N, N] in 0..1, rows looking at columns; 1 on the diagonal."""
        return torch.where(self._self(), 1.0, self.weight_of_gates.sigmoid())

    def penalty(self) -> Tensor:
        """Return the mean of all gates but the diagonal's, over N * N as published; weigh it by 0.1 to 0.5."""
        return self.weight_of_gates.sigmoid().masked_fill(self._self(), 0.0).mean()

    def pattern(self) -> Tensor:
        """Return the hard mask, boolean [N, N]: gates that are at least half open."""
        return self.open().detach() >= 0.5

    def density(self) -> float:
        """Return the share of pairs in the hard mask."""
        return float(self.pattern().float().mean())

    def bias(self, text: int = 0, hard: bool = False) -> Tensor:
        """Return what is added to scaled scores, [text + N, text + N]."""
        gates = self.pattern().float() if hard else self.open()
        own = SHUT * (1 - gates) if self.mode == "paper" or hard else (gates + TINY).log().clamp(max=0.0)
        count = len(own)
        words = torch.ones(text, text, dtype=torch.bool, device=own.device).triu(1) * SHUT
        above = torch.cat([words, own.new_zeros(text, count)], 1)
        below = torch.cat([own.new_full((count, text), SHUT), own], 1)
        return torch.cat([above, below])

    @torch.no_grad()
    def expanded(self, tokens: int) -> VideoGates:
        """Return gates for another number of tokens: copies of these along the diagonal, the rest drawn anew."""
        made = VideoGates(tokens, self.mode)
        own = len(self.weight_of_gates)
        if tokens < own:
            made.weight_of_gates.copy_(self.weight_of_gates[:tokens, :tokens])
            return made
        for place in range(0, tokens - own + 1, own):
            made.weight_of_gates[place : place + own, place : place + own] = self.weight_of_gates
        return made

    def _self(self) -> Tensor:
        return torch.eye(len(self.weight_of_gates), dtype=torch.bool, device=self.weight_of_gates.device)


def gathered_attention(query: Tensor, key: Tensor, value: Tensor, pattern: Tensor, block: int = 49) -> Tensor:
    """Return attention [B, H, N, d] under a boolean pattern [N, N], computed for open keys alone.

    Queries go by blocks, each with the keys that any of its queries sees: a pattern that is shut for whole blocks saves
    their multiply-adds, one that is scattered saves none (`gathered_macs`).
    """
    made = []
    for first in range(0, query.shape[2], block):
        rows = pattern[first : first + block]
        keys = rows.any(0).nonzero()[:, 0]
        part = F.scaled_dot_product_attention(
            query[:, :, first : first + block], key[:, :, keys], value[:, :, keys], rows[:, keys]
        )
        made.append(part)
    return torch.cat(made, 2)


def gathered_macs(pattern: Tensor, width: int, block: int = 49) -> int:
    """Return multiply-adds of scores and weighted sums of one sample, heads * head_dim = `width`."""
    return sum(2 * len(rows) * int(rows.any(0).sum()) * width for rows in torch.split(pattern, block))
