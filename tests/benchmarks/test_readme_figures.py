"""The figures that the README quotes beside the demo's are those of the committed results."""

from __future__ import annotations

import json
import statistics
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
    ours, stock, lookup = (edit[mode]["cpu"][0] for mode in ("lessen", "lessen_stock", "lookup"))
    assert f"{stock:.1f}x faster with the same kernels, same tokens ({ours:.1f}x where packed weights pay)" in readme
    assert f"prompt lookup {lookup:.1f}x" in readme
    assert edit["lessen"]["identical"] == edit["lessen"]["prompts"]
    peer = load("decoding_llamacpp")["summary"]
    edits, answers = (peer[name]["llamacpp_over_lessen"][0] for name in ("edit", "open"))
    assert f"llama.cpp on the 4-bit file is {edits:.1f}x as fast on edits, {answers:.1f}x on open text" in readme


def test_rooms_whose_pages_show_the_results(readme):
    """Pages are written from the results, and held to them by a test of their own."""
    weights, retrieval = ((ROOT / "docs" / f"{page}.md").read_text() for page in ("weights", "retrieval"))
    assert "| part lessen 2.56, 2.56 bits | part IQ2_S, 2.56 bits | 0.118 and 0.203 | 0.58 [0.55, 0.61] |" in weights
    assert "at 2.56 bits: KL to the original | 0.58 [0.55, 0.61] of it at equal bytes" in readme
    for line in (
        "the ten best, behind the screen | 3.9",
        "maxsim-cpu 0.1.0 | 23.6",
        "numkong 7.8.6 (packed; its screen is not proven) | 9.9",
    ):
        assert line in retrieval
    assert "3.9 us a document | maxsim-cpu 23.6, numkong 9.9" in readme


def test_pruning_and_search(readme):
    rows, peer = load("pruning_smollm2")["rows"], load("pruning_peer_smollm2")["rows"]
    ours, other = rows["first-order even, refitted on more"], min(row["perplexity"] for row in peer.values())
    assert f"7 minutes of one core | perplexity {rows['whole']['perplexity']:.0f} to {ours['perplexity']:.0f}" in readme
    assert ours["cpu_s"] < 7.5 * 60
    assert f"Torch-Pruning's better importance: {other:.0f}" in readme
    searches = load("search_enumerated")["searches"]
    looks = {name: [n or 10**9 for n in found["needed"]] for name, found in searches.items()}
    lessen, tpe, nsga = (statistics.median(looks[name]) for name in ("lessen", "Optuna TPE", "pymoo NSGA-II"))
    assert f"median of 20 searches | {lessen:.0f} looks | Optuna TPE {tpe:.0f}, pymoo NSGA-II {nsga:.0f}" in readme


def test_checkpoints(readme):
    sizes = load("checkpoints_sizes")
    near = sizes["lessen"]["near"]
    whole = sum(near["raw_bytes"]) / sum(near["bytes"])
    said = f"{near['late_half_ratio']:.0f}x smaller in the late half of a run, {whole:.0f}x over all of it"
    assert f"{said}; resume gap inside seed noise" in readme
    assert f"{100 * sizes['exact_smaller_than_ZipNN']:.0f} % smaller, bit for bit" in readme
    published = load("checkpoints_gap")["bytes"]
    late = sum(published["original"][10:]) / sum(published["ExCP as published"][10:])
    assert f"ExCP as published: {late:.0f}x in the late half" in readme


def test_ranking(readme):
    found, seeds = load("ranking_outrank"), list(load("ranking_planted")["seeds"].values())
    assert (
        f"{found['peer_cpu_s_at_rows'] / found['lessen']['buffered']['cpu_s']:.0f}x fewer CPU seconds, equal scores"
        in readme
    )
    assert found["greatest_difference_buffered"] < 1e-6

    def mean(name, key):
        return sum(seed["rows"][name][key] for seed in seeds) / len(seeds)

    ours = "lessen rank, crosses of columns that say nothing alone"
    share = mean(ours, "stored_bytes") / mean("all 79 columns", "stored_bytes")
    assert f"AUC {mean(ours, 'difference'):+.3f} at {100 * share:.0f} % of the bytes" in readme
    mutual = mean("sklearn mutual_info_classif, as many columns", "difference")
    linear = mean("L1 logistic regression, as many columns", "difference")
    assert f"mutual information {mutual:+.3f}, L1 {linear:+.3f}".replace("-", "−") in readme


def test_simple_models_on_the_same_features(readme):
    found = load("demo/baselines")
    lines = [json.loads(line) for line in (RESULTS / "demo" / "measurements.jsonl").read_text().splitlines()]
    network = {line["seed"]: line["reference"]["quality"]["auc"] for line in lines}
    logistic, boosting = (found[name]["auc"] for name in ("logistic regression", "gradient boosting"))
    worth = sum(network.values()) / len(network) - logistic
    assert f"reaches an AUC of {logistic:.3f} and gradient boosting {boosting:.3f}" in " ".join(readme.split())
    assert f"worth about {worth:.3f}" in readme


def test_lookups(readme):
    cells = [r for r in load("embeddings_lookup")["records"] if r["way"] == "kernels" and r["threads"] == 1]
    faster, slower = sum(r["ratio_high"] < 1 for r in cells), sum(r["ratio_low"] > 1 for r in cells)
    assert f"beat fp32 in {faster} of {len(cells)} measured cells and lose in {slower}" in " ".join(readme.split())


def test_tables_larger_than_memory(readme):
    found, text = load("embeddings_growth"), " ".join((ROOT / "docs" / "embeddings.md").read_text().split())
    assert (
        f"{found['rows'] // 10**6} million rows of {found['dim']} values ({found['float32_bytes'] / 1e9:.1f} GB" in text
    )
    assert (
        f"became {found['file_bytes'] / 1e9:.1f} GB in {found['write_s']:.0f} s at {found['write_peak_mb']:.0f} MB of memory, "
        f"opened in {found['open_ms']:.1f} ms, and were served at {found['second_pass_mlookups_s']:.0f} million lookups"
        in text
    )
