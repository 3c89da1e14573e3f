"""The figures that the README quotes beside the demo's are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def readme():
    if not RESULTS.exists():
        pytest.skip("benchmarks are not part of this installation")
    return (ROOT / "README.md").read_text()


def load(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def test_decoding(readme):
    edit = load("decoding_copying")["summary"]["edit"]
    ours, packed, lookup = (edit[mode]["cpu"][0] for mode in ("lessen", "plain_packed", "lookup"))
    assert f"{ours:.1f}x faster, same tokens" in readme
    assert f"(over packed weights too: {ours / packed:.1f}x); prompt lookup {lookup:.1f}x" in readme
    assert edit["lessen"]["identical"] == edit["lessen"]["prompts"]


def test_checkpoints(readme):
    sizes = load("checkpoints_sizes")
    assert f"{sizes['lessen']['near']['late_half_ratio']:.0f}x smaller, resume gap inside seed noise" in readme
    assert f"{100 * sizes['exact_smaller_than_ZipNN']:.0f} % smaller, bit for bit" in readme
    published = load("checkpoints_gap")["bytes"]
    late = sum(published["original"][10:]) / sum(published["ExCP as published"][10:])
    assert f"ExCP as published: {late:.0f}x" in readme


def test_ranking(readme):
    found, seeds = load("ranking_outrank"), list(load("ranking_planted")["seeds"].values())
    assert f"{found['peer_cpu_s_at_rows'] / found['lessen']['buffered']['cpu_s']:.0f}x fewer CPU seconds" in readme

    def mean(name, key):
        return sum(seed["rows"][name][key] for seed in seeds) / len(seeds)

    ours = "lessen rank, crosses of columns that say nothing alone"
    share = mean(ours, "stored_bytes") / mean("all 79 columns", "stored_bytes")
    assert f"AUC {mean(ours, 'difference'):+.3f} at {100 * share:.0f} % of the bytes" in readme
    mutual = mean("sklearn mutual_info_classif, as many columns", "difference")
    linear = mean("L1 logistic regression, as many columns", "difference")
    assert f"mutual information {mutual:+.3f}, L1 {linear:+.3f}".replace("-", "−") in readme
