"""Memory that every stored table holds while it serves, against the arithmetic of its layout; the bar is 3 %.

    python -m benchmarks.embeddings.resident [--rows 10000000 --dim 16] [--tables int4 fp16] [--folder DIR]

Each table is saved as an artifact. A child process loads a small twin and looks ids up in it (so that compiled kernels,
operators and buffers exist), notes its resident memory, loads the artifact, looks up a Zipf batch and then every row
once, and reports the growth of its anonymous and file pages. Quantised tables are also mapped from their file.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.embeddings.forms import FORMS, REFERENCE
from benchmarks.embeddings.lookup import RESULTS, held_bytes, write, zipf_ids
from lessen.artifact import folder as artifact
from lessen.stored.tables import rowwise
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.mapped import open_quantized, write_quantized

BAR, SWEEP, TWIN = 0.03, 100_000, 4096
BITS = {"int8": 8, "int4": 4, "int2": 2}


class Holder(nn.Module):
    """A model that is nothing but its table."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table


def resident() -> dict[str, int]:
    """Return this process's anonymous and file pages, in bytes, freed heap handed back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    anonymous = kilobytes["Anonymous"] * 1024
    return {"anonymous": anonymous, "file": kilobytes["Rss"] * 1024 - anonymous}


def serve(table: nn.Module, rows: int, bags: torch.Tensor) -> None:
    """Look a batch of bags up, then every row."""
    with torch.no_grad():
        table(bags.reshape(-1) % rows)
        for start in range(0, rows, SWEEP):
            table(torch.arange(start, min(rows, start + SWEEP)))


def base(name: str, rows: int, dim: int) -> nn.Module:
    """Return the uncompressed model; only its structure is read, unless the table is float32 itself."""
    with torch.device("cpu" if name == REFERENCE else "meta"):
        return Holder(nn.Embedding(rows, dim))


def child(name: str, rows: int, dim: int, folder: Path, mapped: bool) -> None:
    """Measure one table in this process and print the growth."""
    torch.set_num_threads(1)
    ids = zipf_ids(TWIN, SWEEP, torch.Generator().manual_seed(1))
    twin: Any = artifact.load(folder / "twin", base(name, TWIN, dim))
    serve(twin.table, TWIN, ids)
    before = resident()
    if mapped:
        table: nn.Module = open_quantized(folder / "rows")
    else:
        loaded: Any = artifact.load(folder / "made", base(name, rows, dim))
        table = loaded.table
    serve(table, rows, ids)
    after = resident()
    print(json.dumps({kind: after[kind] - before[kind] for kind in before}))


def save(name: str, rows: int, dim: int, folder: Path, called: str) -> nn.Module:
    """Make a table, save it as an artifact and return it."""
    g = torch.Generator().manual_seed(0)
    table = FORMS[name].make(TableShape(rows, dim), torch.randn(rows, dim, generator=g), g)
    artifact.save(folder / called, Holder(table), base(name, rows, dim))
    return table


def measure(name: str, rows: int, dim: int, place: Path) -> list[dict[str, Any]]:
    """Save one table and measure it in children of its own."""
    records = []
    with tempfile.TemporaryDirectory(dir=place) as folder:
        save(name, TWIN, dim, Path(folder), "twin")
        table: Any = save(name, rows, dim, Path(folder), "made")
        held, arithmetic = held_bytes(table), FORMS[name].arithmetic(rows, dim)
        if name in BITS:
            parts = (rowwise.unpack(part, dim, BITS[name]) for part in table.packed.split(SWEEP))
            write_quantized(Path(folder) / "rows", TableShape(rows, dim), parts, BITS[name])
        del table
        for way in ("loaded", "mapped") if name in BITS else ("loaded",):
            command = [
                sys.executable,
                "-m",
                "benchmarks.embeddings.resident",
                "--child",
                folder,
                name,
                str(rows),
                str(dim),
                str(int(way == "mapped")),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            grown = json.loads(done.stdout.splitlines()[-1])
            ratio = sum(grown.values()) / arithmetic
            records.append(
                {
                    "rows": rows,
                    "dim": dim,
                    "table": name,
                    "way": way,
                    **grown,
                    "held": held,
                    "arithmetic": arithmetic,
                    "ratio": ratio,
                    "verdict": "met" if abs(ratio - 1) <= BAR else "missed",
                }
            )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--tables", nargs="+", default=list(FORMS), choices=list(FORMS), metavar="NAME")
    parser.add_argument("--folder", type=Path, help="where tables lie meanwhile")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    records = []
    for name in args.tables:
        for record in measure(name, args.rows, args.dim, args.folder):
            records.append(record)
            print(
                f"{name:32}{record['way']:8}{record['arithmetic'] / 1e6:8.1f} MB  "
                f"anonymous {record['anonymous'] / 1e6:8.1f}  file {record['file'] / 1e6:8.1f}  "
                f"ratio {record['ratio']:.3f}  {record['verdict']}",
                flush=True,
            )
    write(args.out, "resident", records, ("rows", "dim", "table", "way"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        where, form, *numbers = sys.argv[2:]
        size, width, from_file = map(int, numbers)
        child(form, size, width, Path(where), bool(from_file))
    else:
        main()
