"""A set of positions as one bit each, with the number of set bits before every 64: membership and rank in one gather.

words int64 [n / 64]   bit k of word w says whether position 64 w + k is in the set
ranks int32 [n / 64]   set bits in all words before w             1.5 bits a position together
"""

from __future__ import annotations

import torch
from torch import Tensor

from lessen.stored import bits, checks

WORD = 64
CHECKED = 2**18
"""Words that are checked at a time."""
_LOW = 2**63 - 1


def words_for(positions: int) -> int:
    """Return the words that `positions` bits take."""
    return -(-positions // WORD)


def pack(members: Tensor) -> tuple[Tensor, Tensor]:
    """Return (words, ranks) of a bool tensor [n]."""
    padded = torch.zeros(words_for(len(members)) * WORD, dtype=torch.uint8, device=members.device)
    padded[: len(members)] = members
    words = bits.pack(padded, 1).view(torch.int64)
    counts = bits.ones(words & _LOW) + (words < 0)
    return words, (counts.cumsum(0) - counts).to(torch.int32)


def find(words: Tensor, ranks: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return (bool [*], int64 [*]) for positions int64 [*]: whether each is set, and the set bits before it."""
    place, bit = positions // WORD, positions % WORD
    word = words[place]
    member = (word >> bit) & 1
    before = bits.ones(word & ((torch.ones_like(bit) << bit) - 1) & _LOW)
    return member.bool(), ranks[place] + before


def check(words: Tensor, ranks: Tensor, positions: int, kept: int) -> None:
    """Refuse bits beyond `positions`, ranks that do not count the bits, and another number of bits than `kept`.

    Raises:
        ValueError: which of the two tensors is wrong.
    """
    spare = positions % WORD
    if spare and bool(words[-1] >> spare & (1 << WORD - spare) - 1):
        raise ValueError(f"words has bits set beyond the {positions} positions of the table")
    before = 0
    for word, rank in zip(torch.split(words, CHECKED), torch.split(ranks, CHECKED), strict=True):
        counts = bits.ones(word & _LOW) + (word < 0)
        checks.equal("ranks", rank, counts.cumsum(0) - counts + before)
        before += int(counts.sum())
    if before != kept:
        raise ValueError(f"words marks {before} positions, the configuration says {kept}")
