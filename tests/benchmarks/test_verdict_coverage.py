"""The committed study of intervals holds what the guide promises, cell by cell."""

from __future__ import annotations

import math

import pytest

from benchmarks.guides import read

STUDY = read("verdict_coverage")
ROWS = STUDY["rows"]


def noise(share: float) -> float:
    """Return three standard errors of a share over the study's trials."""
    return 3 * math.sqrt(share * (1 - share) / STUDY["trials"])


def test_the_study_spans_what_was_asked():
    assert {1, 2, 3, 10, 20} <= {row["seeds"] for row in ROWS}
    ratios = [row["ratio"] for row in ROWS if not isinstance(row["ratio"], str)]
    assert min(ratios) == 0
    assert max(ratios) >= 4
    assert {"auc", "accuracy", "perplexity"} <= {row["metric"].split()[0] for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['metric']}-{row['ratio']}-{row['seeds']}")
def test_intervals_cover_and_false_verdicts_are_rare(row):
    assert row["covered"] >= 0.95 - max(0.01, noise(0.95))
    assert row["within"] <= 0.025 + noise(0.025)
