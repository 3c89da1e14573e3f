from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.stored.tables import row_classes


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(0, 10**6))
def test_row_classes_know_where_every_row_starts(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    kinds, sizes = torch.randint(0, 16, (rows,), generator=generator), torch.randint(0, 99, (16,), generator=generator)
    classes, starts = row_classes.pack(kinds, sizes)
    found, places = row_classes.find(classes, starts, sizes, torch.arange(rows))
    assert torch.equal(found, kinds)
    assert torch.equal(places, sizes[kinds].cumsum(0) - sizes[kinds])
    assert classes.numel() + 8 * starts.numel() == 16 * row_classes.blocks_for(rows)
