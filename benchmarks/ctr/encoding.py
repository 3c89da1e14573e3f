"""Encoding a CSV log and one shuffled epoch of batches beside FuxiCTR: rows per CPU-second, each in its own process.

    python -m benchmarks.ctr.encoding --rows 200000 --peer-path FUXICTR_CHECKOUT:DEPENDENCIES
    python -m benchmarks.ctr.encoding --rows 20000000 --side lessen        # memory: largest resident size is printed

39 categorical fields, Zipf ids, one label; batches of 4096. FuxiCTR's FeatureProcessor and ParquetDataLoader are used
as its demos use them (with polars < 2, which its CSV path needs), one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FIELDS, BATCH = 39, 4096
NAMES = [f"c{field}" for field in range(FIELDS)]
RESULTS = Path(__file__).parents[1] / "results"


def write_log(path: Path, rows: int) -> None:
    """Write the log in pieces."""
    generator = np.random.default_rng(0)
    with path.open("w") as handle:
        handle.write("label," + ",".join(NAMES) + "\n")
        for start in range(0, rows, 100_000):
            count = min(100_000, rows - start)
            cells = np.column_stack([generator.integers(0, 2, count), generator.zipf(1.3, (count, FIELDS)) % 25_000])
            np.savetxt(handle, cells, fmt="%d", delimiter=",")


def run_lessen(log: Path, out: Path) -> dict[str, float]:
    """Encode and batch with lessen; CPU seconds of each."""
    from lessen.data.encode import SplitRule, encode_logs
    from lessen.data.schema import FieldSchema, Schema

    fields = (FieldSchema(name="label", kind="label"), *(FieldSchema(name=n, kind="categorical") for n in NAMES))
    began = time.process_time()
    data = encode_logs([str(log)], Schema(fields=fields), out / "data", SplitRule(fractions=(1.0, 0.0, 0.0)))
    encoded = time.process_time()
    rows = sum(len(label) for _, label in data.stream("train", BATCH, seed=1))
    return {"rows": rows, "encode": encoded - began, "batch": time.process_time() - encoded}


def run_fuxictr(log: Path, out: Path) -> dict[str, float]:
    """Encode and batch with FuxiCTR; CPU seconds of each."""
    from fuxictr.features import FeatureMap
    from fuxictr.preprocess import FeatureProcessor, build_dataset
    from fuxictr.pytorch.dataloaders.parquet_dataloader import ParquetDataLoader

    columns = [{"name": NAMES, "active": True, "dtype": "str", "type": "categorical", "fill_na": ""}]
    label = {"name": "label", "dtype": "float"}
    began = time.process_time()
    processor = FeatureProcessor(columns, label, dataset_id="bench", data_root=str(out))
    build_dataset(processor, train_data=str(log), data_format="csv")
    encoded = time.process_time()
    features = FeatureMap("bench", str(out / "bench"))
    features.load(str(out / "bench" / "feature_map.json"), {"embedding_dim": 10})
    loader = ParquetDataLoader(features, str(out / "bench" / "train.parquet"), batch_size=BATCH, shuffle=True)
    rows = sum(len(batch["label"]) for batch in loader)
    return {"rows": rows, "encode": encoded - began, "batch": time.process_time() - encoded}


def child(side: str, log: Path, peer_path: str) -> dict[str, float]:
    """Run one side in a process of its own."""
    environment = {**os.environ, "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if side == "fuxictr":
        environment["PYTHONPATH"] = peer_path
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ctr.encoding", "--side", side, "--log", str(log)]
    command += ["--peer-path", peer_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--peer-path", default="", help="PYTHONPATH that holds FuxiCTR and its dependencies")
    parser.add_argument("--side", choices=["lessen", "fuxictr"])
    parser.add_argument("--log", type=Path, help="a log that is there already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = arguments.log or Path(folder) / "log.csv"
        if arguments.log is None:
            write_log(log, arguments.rows)
        if arguments.side:
            found: dict[str, Any] = {"lessen": run_lessen, "fuxictr": run_fuxictr}[arguments.side](log, Path(folder))
            found["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps(found))
            return
        samples = {side: [child(side, log, arguments.peer_path) for _ in range(3)] for side in ("lessen", "fuxictr")}
    print(f"{'':10}{'encode rows/CPU-s':>20}{'batch rows/CPU-s':>20}{'both':>12}{'peak MB':>10}")
    speed = {}
    for side, runs in samples.items():
        encode, batch = (sorted(run[what] for run in runs)[1] for what in ("encode", "batch"))
        speed[side] = arguments.rows / (encode + batch)
        peak = max(run["peak_rss_mb"] for run in runs)
        row = f"{arguments.rows / encode:>20,.0f}{arguments.rows / batch:>20,.0f}{speed[side]:>12,.0f}{peak:>10,.0f}"
        print(f"{side:10}{row}")
    print(f"lessen / fuxictr: {speed['lessen'] / speed['fuxictr']:.1f}x")
    RESULTS.mkdir(exist_ok=True)
    result = {
        "command": f"python -m benchmarks.ctr.encoding --rows {arguments.rows}",
        "rows_per_cpu_second": speed,
        "samples": samples,
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "peer": "FuxiCTR 2.3.10",
    }
    (RESULTS / "ctr_encoding.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
