"""`.ts` files of time series, and one line for each way in which they are broken."""

from __future__ import annotations

import pytest

from lessen.data.ucr import parse_ts
from lessen.errors import DataError

HEAD = "@problemName x\n@dimensions 2\n@data\n"


def test_channels_samples_and_class():
    found = parse_ts(HEAD + "1,2:3,4:up\n\n5,6:7,8:down \n", "x.ts")
    assert [(label, [channel.tolist() for channel in channels]) for channels, label in found] == [
        ("up", [[1, 2], [3, 4]]),
        ("down", [[5, 6], [7, 8]]),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2:a", "no line @data"),
        (HEAD, "no series after @data"),
        (HEAD + "1,2:3,4:a\n1,2:a\n", "line 5 has 1 channels, not 2"),
        (HEAD + "1,2:3,four:a\n", "line 4: could not convert"),
        (HEAD + "1,?:3,4:a\n", "line 4: could not convert"),
        (HEAD + "1,nan:3,4:a\n", "line 4 has missing values"),
        (HEAD + "1\n", "line 4 has 0 channels"),
    ],
)
def test_what_is_broken_is_named(text, said):
    with pytest.raises(DataError, match=said):
        parse_ts(text, "x.ts")
