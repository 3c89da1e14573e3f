"""`lessen rank` against outrank 0.97.5 (with xxhash<4): CPU seconds and agreement of the ranking.

    python -m benchmarks.ranking.outrank --peer-python VENV/bin/python --rows 1000000 --peer-rows 65536 1000000

The peer runs with subsampling 1 and one thread on the first of `--peer-rows` rows. Where the larger number is less than
`--rows` (the peer waits much: an hour for a million rows), its CPU seconds at `--rows` are extrapolated on the line
through both runs, and the result says so. `lessen` reads all rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

RESULTS = Path(__file__).parents[1] / "results" / "ranking_outrank.json"
CARDINALITIES = (2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)

LESSEN = """
import resource, sys, time
from lessen.selection.ranking import RankSettings, rank
from lessen.selection.ranking.buffered import buffered_scores
mode, path = sys.argv[1:3]
start = time.perf_counter()
if mode == "buffered":
    scores = buffered_scores([path], "label")
else:
    pairs = dict(crosses=0, redundancy=0, select=0, transforms="none") if mode == "columns" else {}
    scores = {c.name: c.score for c in rank([path], RankSettings(**pairs)).columns}
import json
own = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"cpu_s": own.ru_utime + own.ru_stime, "wall_s": time.perf_counter() - start,
                  "scores": scores}))
"""


def make(rows: int, columns: int, path: Path, seed: int = 0) -> None:
    """Write a CSV: half the columns carry a graded signal, the others none; cardinality 2 to 1000, strings."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, rows)
    data: dict[str, Any] = {"label": label.astype(str)}
    for number in range(columns):
        values = CARDINALITIES[number % len(CARDINALITIES)]
        column = generator.integers(0, values, rows)
        if number % 2 == 0:
            # half of a value's rows are moved to the half of the values that goes with the label, by a graded share
            moved = generator.random(rows) < 0.15 + 0.75 * number / columns
            side = generator.integers(0, max(values // 2, 1), rows) * 2 + label
            column = np.where(moved, side % values, column)
        data[f"c{number}"] = np.char.add("v", column.astype(str))
    pl.DataFrame(data).write_csv(path)


def run_lessen(mode: str, path: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", LESSEN, mode, str(path)], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def run_peer(python: str, path: Path, folder: Path) -> dict[str, Any]:
    data, out = folder / "peer-data", folder / f"peer-out-{time.time_ns()}"
    data.mkdir(exist_ok=True)
    (data / "data.csv").write_bytes(path.read_bytes())
    command = [
        str(Path(python).parent / "outrank"), "--task", "all", "--data_path", str(data), "--data_source", "csv-raw",
        "--heuristic", "MI-numba-randomized", "--target_ranking_only", "True", "--num_threads", "1",
        "--output_folder", str(out), "--subsampling", "1", "--minibatch_size", "16384", "--label_column", "label",
    ]  # fmt: skip
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    pairs = pl.read_csv(out / "pairwise_ranks.tsv", separator="\t")
    scores: dict[str, float] = {}
    for first, second, score in pairs.rows():
        names = [first.rsplit("-(", 1)[0], second.rsplit("-(", 1)[0]]
        if "label" in names and names[0] != names[1]:
            scores[names[0] if names[1] == "label" else names[1]] = score
    return {"cpu_s": cpu, "wall_s": time.perf_counter() - start, "scores": scores}


def spearman(first: dict[str, float], second: dict[str, float]) -> float:
    names = sorted(set(first) & set(second) - {"label"})
    ranks = [np.argsort(np.argsort([scores[name] for name in names])) for scores in (first, second)]
    return float(np.corrcoef(ranks)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--peer-rows", type=int, nargs=2, default=[65_536, 131_072])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = folder / "whole.csv"
        make(options.rows, options.columns, whole)
        ours = {mode: run_lessen(mode, whole) for mode in ("columns", "full", "buffered")}
        peers, same = [], []
        for rows in options.peer_rows:
            part = folder / f"part{rows}.csv"
            with whole.open() as source, part.open("w") as target:
                target.writelines(line for _, line in zip(range(rows + 1), source, strict=False))
            peers.append(run_peer(options.peer_python, part, folder))
            same.append({mode: run_lessen(mode, part) for mode in ("columns", "buffered")})
    report(options, ours, peers, same)


def report(options: Any, ours: dict[str, Any], peers: list[Any], same: list[Any]) -> None:
    low, high = options.peer_rows
    slope = (peers[1]["cpu_s"] - peers[0]["cpu_s"]) / (high - low)
    projected = peers[1]["cpu_s"] + slope * (options.rows - high)
    result = {
        "command": " ".join(sys.argv),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "polars": pl.__version__,
        "numpy": np.__version__,
        "peer": "outrank 0.97.5, xxhash<4, subsampling 1, one thread, minibatch 16384",
        "rows": options.rows,
        "columns": options.columns,
        "peer_rows": options.peer_rows,
        "peer_cpu_s": [peer["cpu_s"] for peer in peers],
        "peer_wall_s": [peer["wall_s"] for peer in peers],
        "peer_cpu_s_at_rows": projected,
        "peer_extrapolated": high < options.rows,
        "lessen": {mode: {key: run[key] for key in ("cpu_s", "wall_s")} for mode, run in ours.items()},
        "cpu_ratio_columns": projected / ours["columns"]["cpu_s"],
        "cpu_ratio_full": projected / ours["full"]["cpu_s"],
        "cpu_ratio_same_rows": [peer["cpu_s"] / run["columns"]["cpu_s"] for peer, run in zip(peers, same, strict=True)],
        "spearman_same_rows": [
            {mode: spearman(peer["scores"], run[mode]["scores"]) for mode in run}
            for peer, run in zip(peers, same, strict=True)
        ],
        "greatest_difference_buffered": max(
            abs(peers[1]["scores"][name] - same[1]["buffered"]["scores"][name]) for name in peers[1]["scores"]
        ),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
