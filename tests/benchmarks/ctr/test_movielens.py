"""The committed comparison of all models on MovieLens: complete, and the table is written from the numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from lessen.tasks.ctr.models import MODELS

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_the_table_is_that_of_the_committed_numbers() -> None:
    spec = importlib.util.spec_from_file_location("ctr_movielens", BENCHMARKS / "ctr_movielens.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = json.loads((BENCHMARKS / "results" / "ctr_movielens.json").read_text())
    assert script.markdown(found["models"]) == (BENCHMARKS / "results" / "ctr_movielens.md").read_text()
    assert {row["model"] for row in found["models"]} == set(MODELS)
    for row in found["models"]:
        assert row["auc"] == pytest.approx(sum(row["auc_of_seeds"]) / len(row["seeds"]))
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["auc"] > 0.765
    by_name = {row["model"]: row for row in found["models"]}
    for name, row in by_name.items():
        assert all(name in by_name[other]["indistinguishable_from"] for other in row["indistinguishable_from"])
