from __future__ import annotations

from typing import Any

import pytest

from lessen.errors import DataError
from lessen.tasks.ctr.bars.agreement import agreement


def _result(seed: int, auc: float, **changes: Any) -> dict[str, Any]:
    return {
        "dataset": "Frappe_x1", "model": "deepfm", "seed": seed, "published_files": True, "data_fingerprint": "a",
        "test": {"auc": auc, "auc_interval": [auc - 0.001, auc + 0.001], "logloss": 0.15,
                 "logloss_interval": [0.149, 0.151]},
        "settings": {"table_updates": "dense"}, **changes,
    }  # fmt: skip


def test_one_run_is_judged_by_its_examples() -> None:
    auc, loss = agreement([_result(1, 0.9840)])
    assert (auc.value, auc.low, auc.high) == pytest.approx((0.984, 0.983, 0.985))
    assert auc.published == 0.984243
    assert auc.inside
    assert loss.published == 0.148174
    assert not loss.inside
    assert auc.seed_deviation is None
    assert auc.published_deviation == pytest.approx(0.00018, abs=1e-5)


def test_three_seeds_widen_the_interval_by_their_spread() -> None:
    row = agreement([_result(seed, value) for seed, value in enumerate((0.982, 0.983, 0.984))])[0]
    half = (0.001**2 + (4.303 * 0.001) ** 2 * (4 / 3)) ** 0.5
    assert (row.low, row.high) == pytest.approx((0.983 - half, 0.983 + half))
    assert row.seeds == (0, 1, 2)


def test_what_was_not_published_says_so() -> None:
    row = agreement([_result(1, 0.98, model="din")])[0]
    assert row.published is None
    assert row.inside is None
    assert "no figure was published" in row.note
    row = agreement([_result(1, 0.98, published_files=False, settings={"table_updates": "lazy-adam"})])[0]
    assert "not the published files" in row.note
    assert "table updates differ" in row.note


def test_results_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DataError, match="a seed is given twice"):
        agreement([_result(1, 0.9), _result(1, 0.9)])
    with pytest.raises(DataError, match="made on different data"):
        agreement([_result(1, 0.9), _result(2, 0.9, data_fingerprint="b")])
