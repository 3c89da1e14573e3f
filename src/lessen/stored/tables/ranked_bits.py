"""A set of positions as one bit each, with the number of set bits before every 64: membership and rank in one gather.

words int64 [n / 64]   bit k of word w says whether position 64 w + k is in the set
ranks int32 [n / 64]   set bits in all words before w             1.5 bits a position together
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 64
_LOW = 2**63 - 1


def words_for(positions: int) -> int:
    """Return the words that `positions` bits take."""
    return -(-positions // WORD)


def pack(members: Tensor) -> tuple[Tensor, Tensor]:
    """Return (words, ranks) of a bool tensor [n]."""
    padded = torch.zeros(words_for(len(members)) * WORD, dtype=torch.uint8, device=members.device)
    padded[: len(members)] = members
    shifts = torch.arange(8, dtype=torch.uint8, device=members.device)
    packed = (padded.view(-1, 8) << shifts).sum(dim=1, dtype=torch.uint8)
    words = packed.view(torch.int64)
    counts = _ones(words & _LOW) + (words < 0)
    return words, (counts.cumsum(0) - counts).to(torch.int32)


def find(words: Tensor, ranks: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return (bool [*], int64 [*]) for positions int64 [*]: whether each is set, and the set bits before it."""
    place, bit = positions // WORD, positions % WORD
    word = words[place]
    member = (word >> bit) & 1
    before = _ones(word & ((torch.ones_like(bit) << bit) - 1) & _LOW)
    return member.bool(), ranks[place] + before


def _ones(word: Tensor) -> Tensor:
    """Return the number of set bits of non-negative int64 values."""
    word = word - ((word >> 1) & 0x5555555555555555)
    word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (word * 0x0101010101010101) >> 56
