"""The public contract, for the methods of this family."""

from __future__ import annotations

import pytest

from lessen.methods.features.column_selection import ColumnSelection
from lessen.methods.features.optfs import OptFS
from lessen.methods.features.ranked_selection import RankedSelection
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions
from lessen.testing import check_method
from lessen.testing.toys import TableTask


def test_optfs_keeps_the_contract():
    assert "saves_and_loads_bit_for_bit" in check_method(OptFS(search_epochs=2), TableTask())


@pytest.mark.slow
@pytest.mark.parametrize("method", [ColumnSelection(), RankedSelection()], ids=lambda method: method.card.name)
def test_column_methods_keep_the_contract(method):
    options = SyntheticOptions(rows=6_000, fields=4, noise_fields=4, rows_per_field=60, strength=1.5)
    assert "saves_and_loads_bit_for_bit" in check_method(method, SyntheticClicks(options))
