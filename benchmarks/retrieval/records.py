"""What the retrieval benchmarks share: a part of a result file, and an interval over units."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lessen.environment import environment
from lessen.files import atomic_write, dump_json, parse_json

RESULTS = Path(__file__).parents[1] / "results"


def write(name: str, module: str, part: str, found: dict[str, Any]) -> None:
    """Put one part of a benchmark in its file, with the command, the machine and its load."""
    path = RESULTS / f"{name}.json"
    record = parse_json(path.read_bytes(), str(path)) if path.exists() else {"benchmark": name}
    record[part or "study"] = {
        "command": f"python -m benchmarks.retrieval.{module} {part}".strip(), "load": os.getloadavg(),
        "environment": environment(1), **found,
    }  # fmt: skip
    atomic_write(path, dump_json(record))
    print(json.dumps(found, indent=1))


def interval(values: np.ndarray) -> list[float]:
    """Return the mean over units and its 95 % interval, by 10,000 draws of units."""
    draws = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    return [round(float(one), 4) for one in (values.mean(), *np.quantile(values[draws].mean(1), [0.025, 0.975]))]
