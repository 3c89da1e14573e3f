"""What removing weights costs a language model: perplexity, KL to the original, flipped tokens, bits really stored.

    python -m benchmarks.sparsity.language [--rows GLOB]      # writes benchmarks/results/sparsity_language.json

SmolLM2-135M-Instruct, float32, news text, one thread; the judge, the calibration and the resumption of
`benchmarks.language.fewbits`. Every row acts on blocks 10 to 15 of 30 (42 linears); `int8` rows round kept values too.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
from pathlib import Path
from typing import Any

import torch

import lessen
from benchmarks.language.fewbits import CALIBRATION, PART, Judge, apart, made, mean, perplexity
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json

RESULT = Path(__file__).parents[1] / "results" / "sparsity_language.json"
PATTERNS: dict[str, dict[str, Any]] = {"50 %": {"density": 0.5}, "2:4": {"pattern": "2:4"}, "25 %": {"density": 0.25}}


def rows() -> dict[str, dict[str, Any]]:
    """Return the steps by row, those that matter most first."""
    found: dict[str, dict[str, Any]] = {}
    for text, pattern in PATTERNS.items():
        common = {**pattern, "only": PART}
        found[f"{text} magnitude"] = {"magnitude-sparsity": common}
        found[f"{text} wanda"] = {"wanda": {**common, **CALIBRATION}}
        found[f"{text} sparsegpt"] = {"sparsegpt": {**common, **CALIBRATION}}
        found[f"{text} sparsegpt int8"] = {"sparsegpt": {**common, **CALIBRATION, "values": "int8"}}
    found["2:4 wanda int8"] = {"wanda": {"pattern": "2:4", "only": PART, **CALIBRATION, "values": "int8"}}
    for share in (0.5, 0.75):
        low = {"share": share, "only": PART, **CALIBRATION}
        found[f"{share:.0%} mimicking".replace("%", " %")] = {"feature-mimicking": low}
        found[f"{share:.0%} weights".replace("%", " %")] = {"feature-mimicking": {**low, "directions": "weights"}}
    return found


def table(record: dict[str, Any]) -> None:
    """Print the rows, with the difference in nats a token to wanda at the same pattern."""
    for name, row in record["rows"].items():
        control = record["rows"].get(f"{name.rpartition(' ')[0]} wanda")
        gap = ""
        if control is not None and control is not row:
            middle, low, high = apart(row, control)
            gap = f"  against wanda {middle:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(
            f"{name:26} {row['bits_per_weight'] or 32:7.3f} bits  perplexity {perplexity(row):9.2f}  "
            f"KL {mean(row, 'kl'):.4f}  flips {100 * mean(row, 'flips'):5.1f} %  {row['cpu_s']:6.0f} s cpu{gap}"
        )


def main() -> None:
    """Make the rows that the result file lacks, one by one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="*", help="glob over row names")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    task = lessen.get_task({"name": "language-smollm2", "window": 192, "stride": 96})
    judged = lessen.get_task({"name": "language-smollm2", "documents": 8})
    record: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {
        "benchmark": "sparsity_language", "command": "python -m benchmarks.sparsity.language", "rows": {},
        "environment": {**environment(1), "transformers": package_version("transformers")},
        "judged": judged.describe(), "calibrated": task.describe(),
    }  # fmt: skip
    left = {n: step for n, step in rows().items() if n not in record["rows"] and fnmatch.fnmatch(n, asked.rows)}
    if left:
        original = judged.reference()
        judge = Judge(judged, original)
        if "original" not in record["rows"]:
            record["rows"]["original"] = {"bits_per_weight": None, "cpu_s": 0.0, "documents": judge(original)}
        for name, step in left.items():
            record["rows"][name] = made(original, task, judge, step)
            atomic_write(RESULT, dump_json(record))
    table(record)


if __name__ == "__main__":
    main()
