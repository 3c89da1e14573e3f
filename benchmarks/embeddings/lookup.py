"""Lookups of every stored table against `nn.EmbeddingBag` in float32: paired, interleaved, ratio of times.

    python -m benchmarks.embeddings.lookup [--rows 10000000 --dim 16] [--threads 1 2] [--tables int4 fp16] [--seconds 1]

Ids follow a Zipf law (s = 1.05) scattered by a permutation. "one": 53,248 lookups of one id; "bag20": 4,096 bags of 20
ids, summed. One timed unit is all eight batches of one table; units of the two tables alternate, and who goes first
changes every round. Single calls do not alternate: the 20 MB that a float32 batch reads would evict the rows of the
small table before each of its calls, and no server holds both. Each table is timed by compiled kernels and by torch's
operators. The bars: int8, int4 and pruned + int4 at most the time of float32, product-quantised and hashed at most
twice. Values do not change the speed: tables are filled at random.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.embeddings.forms import FORMS, REFERENCE
from lessen.environment import environment, package_version
from lessen.measure.latency import compare_latency, pinned_threads
from lessen.stored import kernels
from lessen.stored.tables.embedding import StoredEmbedding, TableShape

RESULTS = Path(__file__).parents[1] / "results" / "embeddings_lookup.json"
SINGLES, BAGS, BAG, BATCHES = 53_248, 4096, 20, 8
ROUNDS = (7, 100)
"""Least and most rounds of a comparison."""
Call = Callable[[list[Tensor]], None]


def zipf_ids(rows: int, count: int, generator: torch.Generator, exponent: float = 1.05) -> Tensor:
    """Return ids whose frequencies follow rank^-exponent, ranks scattered over the table, int64 [count]."""
    shares = torch.arange(1, rows + 1, dtype=torch.float64).pow(-exponent).cumsum(0)
    ranks = torch.searchsorted(shares / shares[-1], torch.rand(count, dtype=torch.float64, generator=generator))
    scatter = torch.randperm(rows, generator=generator)
    return scatter[ranks.clamp(max=rows - 1)]


def judge(ratio: float, low: float, high: float, bar: float | None) -> str:
    """Say whether a bar is met; an interval on both sides of it says so."""
    if bar is None:
        return ""
    sure = "" if high <= bar or low > bar else ", interval on both sides"
    return f"{'met' if ratio <= bar else 'missed'} ({bar:g}){sure}"


def held_bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


@contextmanager
def only_torch(wanted: bool) -> Iterator[None]:
    """Leave lookups to torch's operators, as where the extra is not installed."""
    before = kernels.SMALLEST
    kernels.SMALLEST = sys.maxsize if wanted else before
    try:
        yield
    finally:
        kernels.SMALLEST = before


def unit(module: nn.Module) -> Call:
    """Return a callable that looks all batches up, flat ids one by one and [bags, length] ids as bags."""
    starts = torch.arange(SINGLES)

    def call(batches: list[Tensor]) -> None:
        for ids in batches:
            if isinstance(module, nn.EmbeddingBag) and ids.dim() == 1:
                module(ids, starts)
            else:
                module(ids)

    return call


def rounds_for(reference: Call, table: Call, batches: list[Tensor], seconds: float, threads: int) -> int:
    """Return the rounds that take about `seconds`."""
    with pinned_threads(threads), torch.no_grad():
        for call in (reference, table):
            call(batches)
        start = time.perf_counter()
        for call in (reference, table):
            call(batches)
        pair = time.perf_counter() - start
    return max(ROUNDS[0], min(ROUNDS[1], int(seconds / pair)))


def measure(
    name: str, table: nn.Module, reference: nn.Module, batches: list[Tensor], threads: int, seconds: float
) -> list[dict[str, Any]]:
    """Time one table in both ways; return a record each."""
    compiled = isinstance(table, StoredEmbedding) and table.source() is not None
    records = []
    for way in ("kernels", "torch") if compiled else ("torch",):
        with only_torch(way == "torch"):
            pair = (unit(reference), unit(table))
            rounds = rounds_for(*pair, batches, seconds, threads)
            examples = sum(ids.numel() for ids in batches)
            timing = compare_latency(
                *pair, [batches], rounds=rounds, warmup=2, threads=threads, batch_examples=examples
            )
        verdict = judge(timing.ratio, timing.ratio_low, timing.ratio_high, FORMS[name].bar)
        made = {"table": name, "way": way, "bytes": held_bytes(table), "bar": FORMS[name].bar, "verdict": verdict}
        records.append({**made, **timing.__dict__})
    return records


def show(work: str, records: list[dict[str, Any]]) -> None:
    for r in records:
        print(
            f"{r['table']:32}{r['bytes'] / 1e6:8.1f}{work:>7}{r['threads']:8}  {r['way']:8}"
            f"{r['batch_examples'] / r['p50_ms'] / 1e3:8.1f}{r['ratio']:7.2f}  "
            f"[{r['ratio_low']:.2f}, {r['ratio_high']:.2f}]  {r['verdict']}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--tables", nargs="+", default=list(FORMS), choices=list(FORMS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=0.4, help="of each comparison")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(args.rows, args.dim, generator=g)
    reference = nn.EmbeddingBag.from_pretrained(weight, mode="sum")
    ids = zipf_ids(args.rows, BATCHES * (SINGLES + BAGS * BAG), g).split([SINGLES] * BATCHES + [BAGS * BAG] * BATCHES)
    works = {"one": list(ids[:BATCHES]), "bag20": [flat.view(BAGS, BAG) for flat in ids[BATCHES:]]}
    records = []
    print(f"{args.rows:,} x {args.dim}, zipf 1.05, torch {torch.__version__}")
    print(f"{'table':32}{'MB':>8}{'work':>7}{'threads':>8}  {'way':8}{'M/s':>8}{'ratio':>7}  [95 % interval]  bar")
    for name in args.tables:
        table = FORMS[name].make(TableShape(args.rows, args.dim), weight, g)
        for work, batches in works.items():
            given: nn.Module = bagged(table) if work == "bag20" and name != REFERENCE else table
            given = reference if name == REFERENCE else given
            for threads in args.threads:
                found = measure(name, given, reference, batches, threads, args.seconds)
                show(work, found)
                records += [{"rows": args.rows, "dim": args.dim, "work": work, **record} for record in found]
    write(args.out, "records", records, ("rows", "dim", "threads", "work", "table", "way"))


def bagged(table: nn.Module) -> nn.Module:
    """Let a stored table sum bags from now on."""
    assert isinstance(table, StoredEmbedding)
    table.mode = "sum"
    return table


def write(path: Path, part: str, records: list[dict[str, Any]], same: tuple[str, ...]) -> None:
    """Add the records of this run to one part of the results, in the place of those that measured the same."""
    known = json.loads(path.read_text()) if path.exists() else {}
    new = {tuple(record[key] for key in same) for record in records}
    kept = [record for record in known.get(part, []) if tuple(record[key] for key in same) not in new]
    command = f"python -m benchmarks.embeddings.{Path(sys.argv[0]).stem} {shlex.join(sys.argv[1:])}"
    commands = [*(item for item in known.get("commands", []) if item != command), command]
    content = {
        **known,
        "commands": commands,
        "environment": {**environment(), "llvmlite": package_version("llvmlite")},
        part: [*kept, *records],
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
