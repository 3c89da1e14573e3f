from __future__ import annotations

import pytest

from lessen.errors import InputError
from lessen.tokens.schedules import constant, kept_counts, largest_constant, merged_counts, possible, sloped


def test_published_counts():
    assert merged_counts(197, constant(16, 12), 1)[-1] == 11  # the last block takes what is left
    assert merged_counts(197, constant(8, 12), 1)[-1] == 101
    rates = [0.7 if block in (3, 6, 9) else 1.0 for block in range(12)]
    assert [kept_counts(197, rates, 1, True)[b] for b in (3, 6, 9)] == [140, 100, 72]
    rates = [0.5 if block in (3, 6, 9) else 1.0 for block in range(12)]
    assert [kept_counts(197, rates, 1, True)[b] for b in (3, 6, 9)] == [100, 52, 28]


def test_slopes_keep_the_total():
    assert sloped(8, -1.0, 12)[0] == 16
    assert sloped(8, -1.0, 12)[-1] == 0
    assert sloped(8, 0.0, 12) == constant(8, 12)
    assert abs(sum(sloped(8, -1.0, 13)) - 8 * 13) <= 13


def test_too_much_is_an_error_that_names_what_fits():
    with pytest.raises(InputError, match=r"block 2 cannot merge 20 of 25 .* is 10"):
        merged_counts(65, constant(20, 6), 1)
    fits = largest_constant(65, 6, 1)
    assert fits == 10
    merged_counts(65, constant(fits, 6), 1)
    with pytest.raises(InputError):
        merged_counts(65, constant(fits + 3, 6), 1)
    with pytest.raises(InputError, match="keep rate of block 1 is 0"):
        kept_counts(65, [1.0, 0.0], 1, False)


def test_a_schedule_is_lowered_to_the_pairs_that_exist():
    assert possible(65, constant(16, 6), 1) == (16, 16, 16, 8, 4, 2)
    assert possible(65, constant(5, 6), 1) == constant(5, 6)
    assert merged_counts(9, possible(9, constant(9, 4), 3), 3) == [6, 5, 4, 4]
