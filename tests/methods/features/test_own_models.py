"""Methods that rebuild a narrower click model say so to a model that they cannot rebuild."""

from __future__ import annotations

import pytest
from torch import nn

from lessen.errors import NothingMatchedError
from lessen.method import Context
from lessen.methods.features.column_selection import ColumnSelection
from lessen.methods.features.ranked_selection import RankedSelection


@pytest.mark.parametrize("kind", [ColumnSelection, RankedSelection])
def test_a_model_of_ones_own_is_told_what_to_do(kind):
    model = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(
        NothingMatchedError, match=r"only the click models of this package can be rebuilt .* with `lessen rank`"
    ):
        kind().apply(model, None, Context())
