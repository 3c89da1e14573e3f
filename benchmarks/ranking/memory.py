"""Peak memory and time of `lessen rank` on many rows: Parquet parts, eight columns, one of them all unique.

python -m benchmarks.ranking.memory [--rows 50000000]
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

RESULTS = Path(__file__).parents[1] / "results" / "ranking_memory.json"
PART = 1_000_000
CARDINALITIES = (2, 10, 100, 1_000, 50_000, 2_000_000)

RANK = """
import json, resource, sys, time
from pathlib import Path
from lessen.selection.ranking import rank
start = time.perf_counter()
ranking = rank([Path(sys.argv[1])])
own = resource.getrusage(resource.RUSAGE_SELF)
key = ranking.column("key")
# the peak of this program alone: ru_maxrss would include that of the parent before exec
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"peak_rss_mb": int(peak.split()[1]) / 1024, "cpu_s": own.ru_utime + own.ru_stime,
                  "rows": ranking.rows,
                  "wall_s": time.perf_counter() - start, "seconds": ranking.seconds,
                  "key_cardinality": key.cardinality, "key_stated_error": key.cardinality_error,
                  "verdicts": {c.name: c.verdict for c in ranking.columns}}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.rows // PART):
            generator = np.random.default_rng(number)
            label = generator.integers(0, 2, PART, dtype=np.int8)
            data = {f"v{c}": generator.integers(0, c, PART, dtype=np.int32) for c in CARDINALITIES}
            data["v10"] = np.where(generator.random(PART) < 0.02, label * 5, data["v10"]).astype(np.int32)
            data |= {"label": label, "key": np.arange(number * PART, (number + 1) * PART, dtype=np.int64)}
            pl.DataFrame(data).write_parquet(Path(name) / f"part{number:03d}.parquet", compression="uncompressed")
        size = sum(path.stat().st_size for path in Path(name).iterdir())
        done = subprocess.run([sys.executable, "-c", RANK, name], capture_output=True, text=True, check=True)
    result = {
        "command": " ".join(sys.argv),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "polars": pl.__version__,
        "data_mb": size / 1e6,
        **json.loads(done.stdout),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
