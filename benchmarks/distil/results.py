"""Writing a result with what it was measured on, and means with their intervals."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lessen.environment import environment
from lessen.files import atomic_write

T95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Quantiles of Student's t by degrees of freedom, 95 % two-sided; one degree (two runs) tells nothing."""


def paired(values: Sequence[float], against: Sequence[float]) -> dict[str, float]:
    """Return the mean, and the mean difference to a control with its 95 % interval over paired runs."""
    gaps = [value - other for value, other in zip(values, against, strict=True)]
    half = T95.get(len(gaps) - 1, 2.0) * statistics.stdev(gaps) / len(gaps) ** 0.5
    middle = statistics.mean(gaps)
    return {"mean": statistics.mean(values), "difference": middle, "low": middle - half, "high": middle + half}


def table(runs: Sequence[Mapping[str, float]], control: str) -> dict[str, dict[str, float]]:
    """Return `paired` of every column of runs against one of them."""
    return {name: paired([run[name] for run in runs], [run[control] for run in runs]) for name in runs[0]}


def write(path: Path, results: Mapping[str, Any], command: str) -> None:
    """Write results as JSON with the command, machine, versions and load."""
    found = {"command": command, "environment": environment(1), "load": list(os.getloadavg()), "results": results}
    atomic_write(path, json.dumps(found, indent=1) + "\n")
