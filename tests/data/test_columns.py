from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lessen.data.columns import Columns, IdField, Layout
from lessen.errors import DataError
from lessen.stored.fields import Segment

LAYOUT = Layout(
    (IdField("user", "categorical", 0, 1, "user"), IdField("tags", "multi", 1, 3, "tags")),
    (Segment("user", 1, 4), Segment("tags", 5, 6)),
    ("price",),
)


def columns(rows: int = 5, **change: torch.Tensor) -> Columns:
    generator = torch.Generator().manual_seed(0)
    values = {
        "ids": torch.randint(0, LAYOUT.rows, (rows, 4), generator=generator, dtype=torch.int32),
        "label": (torch.arange(rows) % 2).float(),
        "numeric": torch.rand(rows, 1, generator=generator),
        **change,
    }
    return Columns(values["ids"], values["label"], LAYOUT, values["numeric"])


def test_layout_counts_rows_and_columns() -> None:
    assert (LAYOUT.rows, LAYOUT.width) == (11, 4)
    assert [field.name for field in LAYOUT.pooled] == ["tags"]
    with pytest.raises(DataError, match="the fields are user, tags"):
        LAYOUT.field("item")


def test_batches_are_slices_in_order_and_gathers_when_shuffled() -> None:
    data = columns(7)
    joined = torch.cat([inputs["ids"] for inputs, _ in data.batches(3)])
    assert torch.equal(joined, data.ids)
    order = torch.randperm(7)
    parts = list(data.batches(3, order))
    assert [len(label) for _, label in parts] == [3, 3]  # the last batch of one row is of no use to BatchNorm
    assert torch.equal(torch.cat([inputs["numeric"] for inputs, _ in parts]), data.numeric[order[:6]])  # type: ignore[index]


def test_select_by_mask_and_by_numbers() -> None:
    data = columns(5)
    assert torch.equal(data.select(np.array([True, False, True, False, False])).ids, data.ids[[0, 2]])
    assert torch.equal(data.select(np.array([4, 0])).label, data.label[[4, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.tensor([[1, 5, -3, 0]], dtype=torch.int32)}, "field 'tags' holds the negative id -3"),
        (
            {"ids": torch.tensor([[11, 5, 6, 0]], dtype=torch.int32)},
            "holds the id 11, the table has 11 rows",
        ),
        ({"ids": torch.zeros(1, 3, dtype=torch.int32)}, r"ids must be int32 \[rows, 4\]"),
        ({"ids": torch.zeros(1, 4)}, "found torch.float32"),
        ({"label": torch.tensor([2.0])}, "the label holds 2.0"),
        ({"label": torch.tensor([math.nan])}, "the label holds nan"),
        ({"label": torch.zeros(2)}, "1 rows of ids but"),
        ({"numeric": torch.tensor([[math.nan]])}, "numeric field 'price' holds NaN or infinity, first in row 0"),
        ({"numeric": torch.tensor([[math.inf]])}, "numeric field 'price'"),
        ({"numeric": torch.zeros(1, 2)}, "numeric columns have shape"),
    ],
)
def test_bad_examples_are_refused_by_name(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        columns(1, **change)
