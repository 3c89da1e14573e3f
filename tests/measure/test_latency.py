"""Paired timing finds a known ratio, an A/A run finds none, and thread settings come back."""

import time

import pytest
import torch

from lessen.measure.latency import FEWEST, _median_ranks, compare_latency


def sleeper(seconds):
    return lambda batch: time.sleep(seconds)


def test_ratio_of_known_durations():
    found = compare_latency(sleeper(0.004), sleeper(0.002), [None], rounds=15, warmup=1, batch_examples=8)
    assert 0.35 < found.ratio < 0.75
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.throughput_per_s == pytest.approx(8 / found.p50_ms * 1000)


def test_identical_calls_give_a_ratio_of_one():
    found = compare_latency(sleeper(0.002), sleeper(0.002), [None], rounds=15, warmup=1)
    assert 0.8 < found.ratio < 1.25


def test_calls_alternate_and_inputs_rotate():
    seen = []
    compare_latency(
        lambda batch: seen.append(("reference", batch)),
        lambda batch: seen.append(("compact", batch)),
        "xyz",
        rounds=4,
        warmup=2,
    )
    assert len(seen) == 12
    pairs = [seen[number : number + 2] for number in range(0, 12, 2)]
    assert all(first[1] == second[1] for first, second in pairs)
    assert {first[0] for first, _ in pairs} == {"reference", "compact"}
    assert {batch for _, batch in seen} == {"x", "y", "z"}


def test_slow_calls_are_timed_as_long_as_asked_and_as_often_as_a_median_needs():
    found = compare_latency(sleeper(0.002), sleeper(0.002), [None], rounds=10_000, warmup=1, seconds=0.2)
    assert FEWEST <= found.rounds < 1_000
    assert found.rounds % 2 == 0
    assert compare_latency(sleeper(0.002), sleeper(0.002), [None], rounds=40, seconds=0.0).rounds == FEWEST
    assert compare_latency(sleeper(0), sleeper(0), [None], rounds=9, seconds=60.0).rounds == 9


def test_threads_are_restored():
    before = torch.get_num_threads()
    compare_latency(sleeper(0), sleeper(0), [None], rounds=3, warmup=0, threads=before + 1)
    assert torch.get_num_threads() == before


def test_median_interval_covers_the_median():
    low, high = _median_ranks(40)
    assert 0 <= low < 20 <= high < 40
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(2000, 40, generator=generator).sort(dim=1).values
    covered = ((samples[:, low] <= 0) & (samples[:, high] >= 0)).double().mean()
    assert 0.92 < covered < 0.99
