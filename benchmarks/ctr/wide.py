"""Encoding a table of many columns with this checkout and with an older one: processor seconds in pairs.

    git archive 234f4b4^ src | tar -x -C OLDER
    python -m benchmarks.ctr.wide --older OLDER/src [--columns 1000 3000] [--pairs 3]

234f4b4 is the commit in which the types of a frame came to be asked for once and not once a column. Each run is a
process of its own; the two of a pair run one after the other, so that the load of the machine is about the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

RESULT = Path(__file__).parents[1] / "results" / "ctr_wide.json"
ROWS = 200
ENCODE = """
import sys, time
from pathlib import Path
from lessen.data.encode import encode_logs
from lessen.data.schema import FieldSchema, Schema
log, columns, out = sys.argv[1:]
fields = [FieldSchema(name=f"c{n}", kind="categorical") for n in range(int(columns))]
began = time.process_time()
encode_logs([log], Schema(fields=(FieldSchema(name="click", kind="label"), *fields)), Path(out))
print(time.process_time() - began)
"""


def write(path: Path, columns: int) -> None:
    """Write a CSV of `ROWS` rows of a label and `columns` ids of 50 values."""
    draw = random.Random(0)
    lines = [",".join(["click", *(f"c{n}" for n in range(columns))])]
    lines += [",".join([str(row % 2), *(str(draw.randrange(50)) for _ in range(columns))]) for row in range(ROWS)]
    path.write_text("\n".join(lines) + "\n")


def seconds(source: Path, log: Path, columns: int) -> float:
    """Return the processor seconds of encoding with the lessen in `source`, without its import."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", ENCODE, str(log), str(columns), f"{folder}/out"]
        environment = os.environ | {"PYTHONPATH": str(source), "POLARS_MAX_THREADS": "1"}
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--older", type=Path, required=True)
    parser.add_argument("--columns", type=int, nargs="+", default=[1000, 3000])
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    ours = Path(__file__).parents[2] / "src"
    rows = []
    for columns in arguments.columns:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log.csv"
            write(log, columns)
            pairs = [
                [seconds(source, log, columns) for source in (arguments.older, ours)] for _ in range(arguments.pairs)
            ]
        row = {"columns": columns, "rows": ROWS, "older_and_now_cpu_s": pairs}
        rows.append(row | {"times_faster": sorted(older / now for older, now in pairs)})
        print(rows[-1], flush=True)
    versions = {"python": platform.python_version(), "polars": pl.__version__, "machine": platform.machine()}
    command = "python -m benchmarks.ctr.wide --older OLDER/src"
    RESULT.write_text(json.dumps({"command": command, "older": "234f4b4^", **versions, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
