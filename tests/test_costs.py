"""Kinds of cost are registered once, and a name that nobody registered is told by its ending."""

from __future__ import annotations

import pytest

from lessen.costs import LATENCY, STORED, CostKind, cost_kind, cost_kinds, register
from lessen.errors import ConfigError


def test_a_kind_is_registered_once():
    assert register(STORED) is STORED
    with pytest.raises(ConfigError, match="'stored_bytes' exists already"):
        register(CostKind("stored_bytes", "bytes on disk", "B"))


def test_unknown_names_are_told_by_their_ending():
    assert cost_kind("image_bytes") == CostKind("image_bytes", "image bytes", "B")
    assert cost_kind("rerank_ms").paired == "rerank_ratio"
    assert not cost_kind("rerank_ratio").relative
    assert cost_kind("steps").unit == ""


def test_titles_are_unique_and_old_keys_come_first_in_their_order():
    kinds = cost_kinds(["made_up"])
    assert len({kind.title for kind in kinds}) == len(kinds)
    assert kinds[-1].name == "made_up"
    assert [kind.name for kind in kinds if kind.core] == [
        "stored_bytes", "resident_bytes", "params", "macs", "latency_ms_p50", "latency_ms_p95", "latency_ratio",
        "throughput_per_s", "peak_rss_bytes", "peak_rss_growth_bytes", "compress_s", "train_s",
    ]  # fmt: skip
    assert cost_kind(LATENCY.paired).unit == "x"
