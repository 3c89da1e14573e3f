"""Peak memory of encoding a click log and streaming one shuffled epoch of it: 39 fields, Criteo's mix.

    python -m benchmarks.ctr.memory --rows 20000000 --folder FOLDER

26 categorical columns of eight-letter ids (Zipf, up to a million each, minimum count 10) and 13 numbers cut into
log-squared buckets, as CSV parts of one million rows. Parts that FOLDER already holds are not written again, so that
a stopped run continues; the parts are kept when --folder is given. Encoding and batching (4096 rows, shuffled) happen
in one child process, whose own peak is read from the system.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

RESULTS = Path(__file__).parents[1] / "results" / "ctr_memory.json"
PART, IDS = 1_000_000, 1_000_000
NUMBERS = [f"I{i}" for i in range(1, 14)]
NAMES = [f"C{i}" for i in range(1, 27)]
LIMIT_MB = 4096

STREAM = """
import json, sys, tempfile, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from lessen.data.encode import SplitRule, encode_logs
from lessen.data.schema import FieldSchema, Schema
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
numbers, names, logs, out = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
fields = [FieldSchema(name="label", kind="label")]
fields += [FieldSchema(name=n, kind="numeric", transform="log-squared", fill=0, minimum_count=10) for n in numbers]
fields += [FieldSchema(name=n, kind="categorical", minimum_count=10) for n in names]
began, start = time.process_time(), peak()
data = encode_logs([logs], Schema(fields=fields), Path(out) / "data", SplitRule(fractions=(1.0, 0.0, 0.0)))
encoded, encoding_peak = time.process_time(), peak()
rows = total = 0
for inputs, label in data.stream("train", 4096, seed=1):
    rows += len(label)
    total += int(inputs["ids"].sum(dtype=torch.int64))
print(json.dumps({"rows": rows, "table_rows": data.layout.rows, "sum_of_ids": total, "peak_before_mb": start,
                  "peak_encoding_mb": encoding_peak, "peak_rss_mb": peak(), "encode_cpu_s": encoded - began,
                  "epoch_cpu_s": time.process_time() - encoded}))
"""


def write_part(path: Path, number: int, rows: int) -> None:
    """Write one part under another name first, so that a part that is there is whole."""
    generator = np.random.default_rng(number)
    words = pl.Series([f"{value * 2654435761 % 2**32:08x}" for value in range(IDS)])
    frame = {"label": pl.Series(generator.integers(0, 2, rows))}
    for name in NUMBERS:
        frame[name] = pl.Series(np.floor(generator.lognormal(2.0, 2.0, rows)).astype(np.int64))
    for name in NAMES:
        frame[name] = words.gather(pl.Series((generator.zipf(1.2, rows) - 1) % IDS))
    draft = path.with_suffix(".draft")
    pl.DataFrame(frame).write_csv(draft)
    draft.rename(path)


def measure(folder: Path, rows: int) -> dict[str, float]:
    logs = folder / "parts"
    logs.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, rows, PART)):
        path = logs / f"part{number:03d}_of_{rows}.csv"
        if not path.exists():
            write_part(path, number, min(PART, rows - start))
    pattern = str(logs / f"part*_of_{rows}.csv")
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-c", STREAM, json.dumps(NUMBERS), json.dumps(NAMES), pattern, out]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout)
    found["data_mb"] = sum(path.stat().st_size for path in logs.glob(f"part*_of_{rows}.csv")) / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--folder", type=Path, help="where parts are kept (about 270 bytes a row)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(options.folder or Path(temporary), options.rows)
    print(
        f"{found['rows']:,.0f} rows x 39 fields, {found['data_mb'] / 1000:.1f} GB of CSV, "
        f"{found['table_rows']:,.0f} table rows"
    )
    print(
        f"peak resident: {found['peak_encoding_mb']:,.0f} MB after encoding, {found['peak_rss_mb']:,.0f} MB after "
        f"one epoch (limit {LIMIT_MB} MB)"
    )
    result = {
        "command": f"python -m benchmarks.ctr.memory --rows {options.rows}",
        "limit_mb": LIMIT_MB,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "polars": pl.__version__,
        **found,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(found["peak_rss_mb"] > LIMIT_MB)


if __name__ == "__main__":
    main()
