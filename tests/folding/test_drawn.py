"""Drawn networks fold to 1e-12 in float64, and what is found there is worth something."""

from __future__ import annotations

import pytest

fuzz = pytest.importorskip("benchmarks.folding.fuzz", reason="benchmarks are not part of this installation")


def check(kind, seeds):
    rows = [fuzz.ours(seed, kind) for seed in seeds]
    assert [one["failed"] for one in rows] == [None] * len(rows)
    assert sum(len(one["folds"]) for one in rows) > len(rows)
    assert sum(one["parameters"][1] for one in rows) < sum(one["parameters"][0] for one in rows)
    return {name for one in rows for name in one["folds"]}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("dense", {"batch norm", "linear chain", "constant part"}), ("conv", {"batch norm", "branch", "linear chain"})],
)
def test_drawn_networks_answer_as_before(kind, wanted):
    assert check(kind, range(50)) >= wanted | {"units"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_a_thousand_drawn_networks_answer_as_before(kind):
    check(kind, range(1000))


def test_a_fold_that_is_wrong_would_be_seen(monkeypatch):
    from lessen.folding import norms

    real = norms.affine
    monkeypatch.setattr(norms, "affine", lambda norm: tuple(1.001 * part for part in real(norm)))
    assert any(fuzz.ours(seed, "dense")["failed"] for seed in range(10))
