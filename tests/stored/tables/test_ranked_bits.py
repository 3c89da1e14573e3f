from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.stored.tables import ranked_bits


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), st.integers(0, 10**6))
def test_membership_and_rank_equal_a_running_count(length, density, seed):
    mask = torch.rand(length, generator=torch.Generator().manual_seed(seed)) < density
    words, ranks = ranked_bits.pack(mask)
    assert len(words) == len(ranks) == ranked_bits.words_for(length) == -(-length // 64)
    member, rank = ranked_bits.find(words, ranks, torch.arange(length).view(1, -1))
    assert torch.equal(member[0], mask)
    assert torch.equal(rank[0], mask.long().cumsum(0) - mask.long())


def test_full_words_whose_sign_bit_is_set_are_counted():
    words, ranks = ranked_bits.pack(torch.ones(192, dtype=torch.bool))
    assert words.tolist() == [-1, -1, -1]
    assert ranks.tolist() == [0, 64, 128]
