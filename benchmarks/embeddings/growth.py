"""A table larger than comfort: built, quantised, saved, mapped and served block by block, memory and time reported.

    python -m benchmarks.embeddings.growth [--rows 100000000] [--dim 16] [--bits 8] [--folder DIR]

Rows are drawn at random one block at a time, as a reader of shards would hand them over. Lookups follow a Zipf law
scattered over the table; the first pass reads pages from disk, the second finds them in the page cache.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lessen.cli.progress import Reporting
from lessen.stored.tables.embedding import TableShape
from lessen.stored.tables.mapped import open_quantized, write_quantized

RESULTS = Path(__file__).parents[1] / "results" / "embeddings_growth.json"
BLOCK, LOOKUPS = 500_000, 53_248


def blocks(rows: int, dim: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for start in range(0, rows, BLOCK):
        yield torch.randn(min(BLOCK, rows - start), dim, generator=generator)


def scattered_zipf(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """Return ids with density ~ 1 / rank, ranks scattered by a multiplication modulo the table size."""
    ranks = torch.exp(
        torch.rand(count, dtype=torch.float64, generator=generator) * torch.log(torch.tensor(rows))
    ).long()
    return torch.remainder(ranks * 2_654_435_761, rows)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--bits", type=int, default=8, choices=(8, 4, 2))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"rows": args.rows, "dim": args.dim, "bits": args.bits, "start_mb": peak_mb()}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "table.safetensors"
        start = time.perf_counter()
        shape = TableShape(args.rows, args.dim)
        with Reporting() as log:
            result["file_bytes"] = write_quantized(path, shape, blocks(args.rows, args.dim), args.bits, log=log)
        result["write_s"] = time.perf_counter() - start
        result["write_peak_mb"] = peak_mb()
        start = time.perf_counter()
        table = open_quantized(path)
        result["open_ms"] = 1000 * (time.perf_counter() - start)
        generator = torch.Generator().manual_seed(1)
        batches = [scattered_zipf(args.rows, LOOKUPS, generator) for _ in range(20)]
        for name in ("first_pass_mlookups_s", "second_pass_mlookups_s"):
            start = time.perf_counter()
            for ids in batches:
                table(ids)
            result[name] = len(batches) * LOOKUPS / (time.perf_counter() - start) / 1e6
        result["serve_peak_mb"] = peak_mb()
    result["float32_bytes"] = 4 * args.rows * args.dim
    for name, value in result.items():
        print(f"{name:24} {value:,.1f}" if isinstance(value, float) else f"{name:24} {value:,}")
    content = {
        "command": " ".join(["python", "-m", "benchmarks.embeddings.growth", *sys.argv[1:]]),
        "machine": platform.machine(),
        "torch": str(torch.__version__),
        **result,
    }
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
