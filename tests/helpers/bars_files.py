"""Files in the exact form of each BARS data set, a few rows of them, with a signal in the first field."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lessen.tasks.ctr.bars.datasets import DATASETS, SPLITS, BarsData

ROWS = {"train": 400, "validation": 120, "test": 120}


def write(name: str, folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for split, rows in ROWS.items():
        lines = [",".join(header(DATASETS[name]))]
        lines += [",".join(row(DATASETS[name], generator, number)) for number in range(rows)]
        (folder / SPLITS[split]).write_text("\n".join(lines) + "\n")
    return folder


def header(data: BarsData) -> list[str]:
    if data.name == "Avazu_x4":  # the raw file: id first, then the label, no weekday and weekend
        return ["id", data.label, *(name for name in data.categorical if name not in ("weekday", "weekend"))]
    return list(data.columns)


def row(data: BarsData, generator: np.random.Generator, number: int) -> list[str]:
    first = int(generator.integers(0, 6))
    label = int(generator.random() < (0.9 if first < 3 else 0.1))
    cells = {data.label: str(label), "id": str(10**18 + number)}
    raw = data.name.endswith("x4")
    for name in data.numeric:  # Criteo_x1: scaled numbers
        cells[name] = f"{generator.random():.6f}"
    for name in data.bucketed:  # Criteo_x4: whole numbers from -2 on, empty where missing
        cells[name] = "" if generator.random() < 0.2 else str(int(generator.lognormal(2, 2)) - 2)
    derived = ("weekday", "weekend") if data.timed else ()
    for place, name in enumerate(n for n in data.categorical if n not in derived):
        value = int(generator.integers(0, 8))
        if data.name == "Criteo_x4":
            cells[name] = "" if generator.random() < 0.1 else f"{value * 2654435761 % 2**32:08x}"
        else:
            cells[name] = f"{value:08x}" if raw else str(10 * place + value)
    if data.timed:
        cells["hour"] = f"1410{int(generator.integers(21, 31))}{int(generator.integers(0, 24)):02d}"
    signal = "C1" if "C1" in data.categorical else data.categorical[0]
    cells[signal] = f"{first:08x}" if raw else str(first)
    return [cells[name] for name in header(data)]
