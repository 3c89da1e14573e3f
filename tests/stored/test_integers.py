from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lessen.stored import integers


@pytest.mark.parametrize("by_blocks", [False, True])
@pytest.mark.parametrize("width", [1, 64, 1024, 2500])
def test_products_are_those_of_whole_numbers(width, by_blocks, monkeypatch):
    if by_blocks and not integers.blocked():
        pytest.skip("torch multiplies int8 in a plain loop here")
    monkeypatch.setattr(integers, "blocked", lambda: by_blocks)
    monkeypatch.setattr(integers, "DECODED", 5 * min(width, 1024))
    rows = torch.randint(-128, 128, (7, width)).float()
    codes = torch.randint(-128, 128, (13, width), dtype=torch.int8)
    rows[0], codes[0] = -128, -128  # the largest sum that there is
    rows[1], codes[1] = 127, -127
    exact = rows.long() @ codes.long().t()
    assert torch.equal(integers.products(rows, codes), exact.float())
    assert integers.products(rows[:0], codes).shape == (0, 13)


def test_what_counts_operations_sees_no_float_products_that_stand_for_integer_ones(monkeypatch):
    monkeypatch.setattr(integers, "blocked", lambda: False)
    with FlopCounterMode(display=False) as counter:
        integers.products(torch.ones(4, 8), torch.ones(32, 8, dtype=torch.int8))
    assert counter.get_total_flops() == 0
