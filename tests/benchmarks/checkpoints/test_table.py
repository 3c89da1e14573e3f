"""The committed results hold what the guide claims."""

from __future__ import annotations

import pytest

table = pytest.importorskip("benchmarks.checkpoints.table", reason="benchmarks are not part of this installation")


def test_the_committed_results_meet_what_is_claimed():
    sizes, gap, ctr = (table.read(f"checkpoints_{name}") for name in ("sizes", "gap", "ctr"))
    near = sizes["lessen"]["near"]
    assert near["late_half_ratio"] > 40
    assert near["pack_mb_per_cpu_second"] > 100
    assert near["unpack_all_mb_per_cpu_second"] > 200
    assert sizes["lessen"]["exact"]["bit_identical"]
    assert min(sizes["exact_smaller_than_ZipNN"], sizes["exact_smaller_than_safetensors + zstd -3"]) > 0.1
    noise = gap["noise_between_two_seeds"]
    assert all(abs(gap["gaps"]["near"][key]) < noise[key] for key in noise)
    assert all(row["times"] > 1.3 for row in gap["smaller_at_no_larger_gap"].values())
    assert min(ctr["tables_smaller_by_touched_rows"].values()) > 2
    assert all(ctr["sizes"][name]["bit_identical"] for name in ctr["sizes"] if name.startswith("exact"))
    assert abs(ctr["final_gap"]) < ctr["noise_between_two_seeds"]
