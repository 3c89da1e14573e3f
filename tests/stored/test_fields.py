"""Which field an id lies in: one answer for every table."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.stored.fields import Segment, block_of, cover, located, masked_mean


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), max_size=6), st.integers(0, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_id_lies_in_the_block_that_holds_it(gaps, more, wide):
    segments, end = [], 0
    for number, (gap, rows) in enumerate(gaps):
        segments.append(Segment(f"f{number}", end + gap, rows))
        end += gap + rows
    rows = end + more
    if rows == 0:
        return
    blocks = cover(tuple(segments), rows)
    expected = [next(n for n, b in enumerate(blocks) if b.start <= row < b.start + b.rows) for row in range(rows)]
    ids = torch.arange(rows, dtype=torch.int64 if wide else torch.int32)
    assert block_of(ids, blocks).tolist() == expected
    block, own = located(ids.view(1, -1), blocks)
    assert block[0].tolist() == expected
    assert own[0].tolist() == [row - blocks[n].start for row, n in enumerate(expected)]
    assert block_of(torch.tensor([rows + 5]), blocks).tolist() == [len(blocks) - 1]


def test_a_mean_over_nothing_is_zero():
    rows, mask = torch.ones(2, 3, 4), torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(rows, mask).tolist() == [[1.0] * 4, [0.0] * 4]
