"""Lookups of every stored table against `nn.EmbeddingBag` in float32: paired, alternated, ratio of times.

    python benchmarks/embeddings_lookup.py [--rows 10000000 --dim 16] [--threads 1 2] [--rounds 200]

Ids follow a Zipf law (s = 1.05) scattered by a permutation. "one": 53,248 bags of one id; "bag20": 4,096 bags of 20
ids, summed. The bars: int8 and int4 at most the time of float32, pruned + int4 the same, product-quantised and hashed
at most twice; resident bytes within 3 % of the arithmetic. Values do not change the speed: tables are filled at random.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lessen.latency import compare_latency
from lessen.stored import rowwise
from lessen.stored.block_hashed import BlockHashedEmbedding
from lessen.stored.embedding import StoredEmbedding, TableShape
from lessen.stored.half_embedding import HalfEmbedding
from lessen.stored.hashed_embedding import HashedEmbedding
from lessen.stored.product_quantized import ProductQuantizedEmbedding
from lessen.stored.pruned_embedding import PrunedEmbedding
from lessen.stored.quantized_embedding import QuantizedEmbedding
from lessen.stored.quotient_remainder import QuotientRemainderEmbedding
from lessen.stored.step_quantized import StepQuantizedEmbedding
from lessen.stored.tiered_embedding import TieredEmbedding, bare
from lessen.stored.unified_embedding import UnifiedEmbedding

RESULTS = Path(__file__).parent / "results" / "embeddings_lookup.json"
BARS = {"int8": 1.0, "int4": 1.0, "pruned 25 % + int4": 1.0, "product-quantised": 2.0, "hashed 10 %": 2.0}
SINGLES, BAGS, BAG = 53_248, 4096, 20


def zipf_ids(rows: int, count: int, generator: torch.Generator, exponent: float = 1.05) -> Tensor:
    """Return ids whose frequencies follow rank^-exponent, ranks scattered over the table, int64 [count]."""
    shares = torch.arange(1, rows + 1, dtype=torch.float64).pow(-exponent).cumsum(0)
    ranks = torch.searchsorted(shares / shares[-1], torch.rand(count, dtype=torch.float64, generator=generator))
    scatter = torch.randperm(rows, generator=generator)
    return scatter[ranks.clamp(max=rows - 1)]


def random_bytes(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def quantised(shape: TableShape, bits: int, weight: Tensor) -> QuantizedEmbedding:
    made = QuantizedEmbedding(shape, bits)
    for start in range(0, shape.rows, 1_000_000):
        made.packed[start : start + 1_000_000] = rowwise.pack(weight[start : start + 1_000_000], bits)
    return made


def half(shape: TableShape, weight: Tensor) -> HalfEmbedding:
    made = HalfEmbedding(shape, "fp16")
    made.rows.copy_(weight)
    return made


def pruned(shape: TableShape, weight: Tensor, generator: torch.Generator) -> PrunedEmbedding:
    kept = shape.rows // 4
    position = torch.randint(0, kept, (shape.rows,), dtype=torch.int32, generator=generator)
    made = PrunedEmbedding.from_dense(shape, weight[:kept], position)
    made.table = quantised(TableShape(kept, shape.dim), 4, weight[:kept])
    return made


def product(shape: TableShape, centroids: int, generator: torch.Generator) -> ProductQuantizedEmbedding:
    made = ProductQuantizedEmbedding(shape, shape.dim // 4, centroids)
    made.codes.copy_(random_bytes(made.codes.shape, generator))
    return made


def hashed(shape: TableShape, generator: torch.Generator, hashes: int = 1) -> HashedEmbedding:
    made = HashedEmbedding(shape, [shape.rows // 10], hashes, False)
    made.reset(0.1, generator)
    return made


def tiered(shape: TableShape, generator: torch.Generator) -> TieredEmbedding:
    hot = shape.rows // 20
    made = TieredEmbedding(shape, hot, product(bare(shape), 256, generator))
    made.fill_hot(torch.randperm(shape.rows, generator=generator)[:hot].sort().values, torch.zeros(hot, shape.dim))
    return made


def contenders(shape: TableShape, weight: Tensor, g: torch.Generator) -> dict[str, Callable[[], nn.Module]]:
    bag = nn.EmbeddingBag(1, 1, mode="sum")
    bag.weight = nn.Parameter(weight, requires_grad=False)
    bag.num_embeddings, bag.embedding_dim = weight.shape
    return {
        "float32 (A/A)": lambda: bag,
        "fp16": lambda: half(shape, weight),
        "int8": lambda: quantised(shape, 8, weight),
        "int4": lambda: quantised(shape, 4, weight),
        "int2": lambda: quantised(shape, 2, weight),
        "2 bit, one step": lambda: StepQuantizedEmbedding(shape, 2),
        "pruned 25 % + int4": lambda: pruned(shape, weight, g),
        "product-quantised": lambda: product(shape, 256, g),
        "product-quantised, 4 bit": lambda: product(shape, 16, g),
        "5 % hot + product-quantised": lambda: tiered(shape, g),
        "hashed 10 %": lambda: hashed(shape, g),
        "double hash 10 %": lambda: hashed(shape, g, 2),
        "unified 10 %": lambda: UnifiedEmbedding(shape, [], shape.rows // 10, 1),
        "ROBE 10 %": lambda: BlockHashedEmbedding(shape, [], shape.rows * shape.dim // 10, shape.dim),
        "quotient-remainder": lambda: QuotientRemainderEmbedding(shape, [int(shape.rows**0.5)], "multiply"),
    }


def judge(ratio: float, low: float, high: float, bar: float | None) -> str:
    """Say whether a bar is met; an interval on both sides of it says so."""
    if bar is None:
        return ""
    sure = "" if high <= bar or low > bar else ", interval on both sides"
    return f"{'met' if ratio <= bar else 'missed'} ({bar:g}){sure}"


def held_bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(args.rows, args.dim, generator=generator)
    reference = nn.EmbeddingBag.from_pretrained(weight, mode="sum")
    ids = zipf_ids(args.rows, 8 * (SINGLES + BAGS * BAG), generator).split([SINGLES] * 8 + [BAGS * BAG] * 8)
    batches = {"one": ids[:8], "bag20": [flat.view(BAGS, BAG) for flat in ids[8:]]}
    starts = torch.arange(SINGLES)
    records = []
    print(f"{args.rows:,} x {args.dim}, zipf 1.05, torch {torch.__version__}")
    print(f"{'table':29}{'MB':>8}{'work':>7}{'threads':>8}{'M/s':>8}{'ratio':>7}  [95 % interval]  bar")
    for name in contenders(TableShape(args.rows, args.dim), weight, generator):
        for work, inputs in batches.items():
            mode = "sum" if work == "bag20" else None
            table = contenders(TableShape(args.rows, args.dim, mode=mode), weight, generator)[name]()
            call = table if isinstance(table, StoredEmbedding) else _single(table, starts)
            for threads in args.threads:
                timing = compare_latency(
                    _single(reference, starts), call, inputs, rounds=args.rounds, threads=threads,
                    batch_examples=inputs[0].numel(),
                )  # fmt: skip
                bar = BARS.get(name)
                verdict = judge(timing.ratio, timing.ratio_low, timing.ratio_high, bar)
                print(
                    f"{name:29}{held_bytes(table) / 1e6:8.1f}{work:>7}{threads:8}{timing.throughput_per_s / 1e6:8.1f}"
                    f"{timing.ratio:7.2f}  [{timing.ratio_low:.2f}, {timing.ratio_high:.2f}]  {verdict}",
                    flush=True,
                )
                records.append({
                    "table": name, "rows": args.rows, "dim": args.dim, "work": work, "bytes": held_bytes(table),
                    "bar": bar, "verdict": verdict, **timing.__dict__,
                })  # fmt: skip
    write(args.out, records)


def _single(module: nn.Module, starts: Tensor) -> Callable[[Tensor], Tensor]:
    """Look flat ids up as bags of one, and [bags, length] ids as bags."""
    return lambda ids: module(ids, starts) if ids.dim() == 1 else module(ids)


def write(path: Path, records: list[dict[str, object]]) -> None:
    """Add the records of this run to those of other table sizes."""
    known = json.loads(path.read_text())["records"] if path.exists() else []
    size = (records[0]["rows"], records[0]["dim"])
    kept = [record for record in known if (record["rows"], record["dim"]) != size]
    content = {
        "command": " ".join(["python", "benchmarks/embeddings_lookup.py", *sys.argv[1:]]),
        "machine": platform.processor() or platform.machine(), "torch": str(torch.__version__),
        "python": platform.python_version(), "records": [*kept, *records],
    }  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
