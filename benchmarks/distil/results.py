"""Writing a result with what it was measured on, rows that outlive a kill, and means with their intervals."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lessen.environment import environment
from lessen.files import atomic_write

T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
"""Quantiles of Student's t for 1, 2, ... degrees of freedom, 95 % two-sided."""

Row = dict[str, float]


class Rows:
    """Rows of numbers by name in the result that a script writes: what is there already is not measured again.

    Args:
        path: of the result.
        seconds: start nothing new after so many.
    """

    def __init__(self, path: Path, seconds: float = float("inf")) -> None:
        self.path, self.stops = path, time.monotonic() + seconds
        before = json.loads(path.read_text())["results"] if path.is_file() else {}
        self.rows: dict[str, dict[str, Row]] = before.get("rows", {})

    def open(self, group: str, name: str, column: str) -> bool:
        """Tell whether a number is still to be measured, and there is time to begin."""
        return column not in self.rows.get(group, {}).get(name, {}) and time.monotonic() < self.stops

    def add(self, group: str, name: str, column: str, value: float) -> None:
        """Keep a number."""
        self.rows.setdefault(group, {}).setdefault(name, {})[column] = value
        print(f"{group}, {name}, {column}: {value:.4f}", flush=True)

    def whole(self, group: str) -> list[Row]:
        """Return the rows of a group that have all the columns of its fullest row."""
        rows = list(self.rows.get(group, {}).values())
        columns = max((len(row) for row in rows), default=0)
        return [row for row in rows if len(row) == columns]

    def write(self, found: Mapping[str, Any], command: str) -> None:
        """Write the rows and what was made of them."""
        write(self.path, {**found, "rows": self.rows}, command)


def paired(values: Sequence[float], against: Sequence[float]) -> dict[str, float]:
    """Return the mean, and the mean difference to a control with its 95 % interval over paired runs."""
    gaps = [value - other for value, other in zip(values, against, strict=True)]
    middle, freedom = statistics.mean(gaps), len(gaps) - 1
    quantile = T95[freedom - 1] if freedom <= len(T95) else 2.0
    half = quantile * statistics.stdev(gaps) / len(gaps) ** 0.5 if freedom else float("inf")
    return {"mean": statistics.mean(values), "difference": middle, "low": middle - half, "high": middle + half}


def table(runs: Sequence[Mapping[str, float]], control: str) -> dict[str, dict[str, float]]:
    """Return `paired` of every column of runs against one of them; nothing before it is there."""
    if not runs or control not in runs[0]:
        return {}
    return {name: paired([run[name] for run in runs], [run[control] for run in runs]) for name in runs[0]}


def write(path: Path, results: Mapping[str, Any], command: str) -> None:
    """Write results as JSON with the command, machine, versions and load."""
    found = {"command": command, "environment": environment(1), "load": list(os.getloadavg()), "results": results}
    atomic_write(path, json.dumps(found, indent=1) + "\n")
