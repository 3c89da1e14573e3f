"""The committed comparison of all models on MovieLens: complete, and the table is written from the numbers."""

from __future__ import annotations

import json

import pytest

from lessen.tasks.ctr.models import MODELS

script = pytest.importorskip("benchmarks.ctr.movielens", reason="benchmarks are not part of this installation")


def test_the_table_is_that_of_the_committed_numbers() -> None:
    found = json.loads((script.RESULTS / "ctr_movielens.json").read_text())
    assert script.markdown(found["models"]) == (script.RESULTS / "ctr_movielens.md").read_text()
    assert {row["model"] for row in found["models"]} == set(MODELS)
    for row in found["models"]:
        assert row["auc"] == pytest.approx(sum(row["auc_of_seeds"]) / len(row["seeds"]))
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["auc"] > 0.765
    by_name = {row["model"]: row for row in found["models"]}
    for name, row in by_name.items():
        assert all(name in by_name[other]["indistinguishable_from"] for other in row["indistinguishable_from"])
