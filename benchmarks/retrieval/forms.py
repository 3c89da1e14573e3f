"""Forms of an index beside faiss's own at equal bytes: recall of ten neighbours, and processor time of a query.

    python -m benchmarks.retrieval.forms

20,000 drawn vectors of 128 numbers around 400 centres, 100 queries one by one; times are of one thread, interleaved;
the median ratio over rounds. faiss is timed where it is installed (extra `retrieval`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json
from lessen.retrieval.exact import recall, shares
from lessen.retrieval.faiss_files import faiss_module
from lessen.retrieval.scan import Scan
from lessen.stored.vectors.flat import FlatVectors, Int8Vectors
from lessen.stored.vectors.product import ProductVectors
from lessen.stored.vectors.rotated import RotatedVectors
from lessen.stored.vectors.staged import StagedVectors

RESULT = Path(__file__).parents[1] / "results" / "retrieval_forms.json"
ROWS, DIM, QUERIES, K, ROUNDS = 20_000, 128, 100, 10, 5


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(400, DIM, generator=generator)

    def around(count: int) -> torch.Tensor:
        chosen = centres[torch.randint(400, (count,), generator=generator)]
        return torch.nn.functional.normalize(chosen + 0.7 * torch.randn(count, DIM, generator=generator), dim=1)

    return around(ROWS), around(QUERIES)


def ours(vectors: torch.Tensor) -> dict[str, StagedVectors]:
    int8, one = Int8Vectors.of(vectors), RotatedVectors.of(vectors, bits=1)
    return {
        "flat": StagedVectors.around(FlatVectors.of(vectors)),
        "int8": StagedVectors.around(int8),
        "4 bits": StagedVectors.around(RotatedVectors.of(vectors, bits=4)),
        "1 bit": StagedVectors.around(one),
        "1 bit, then int8": StagedVectors.around(one, int8),
        "pq of 16": StagedVectors.around(ProductVectors.of(vectors[:10_000], groups=16)),
    }


def theirs(vectors: torch.Tensor) -> dict[str, tuple[Any, int]]:
    faiss = faiss_module()
    if faiss is None:
        return {}
    faiss.omp_set_num_threads(1)
    rows, product = vectors.numpy(), faiss.METRIC_INNER_PRODUCT
    made: dict[str, tuple[Any, int]] = {
        "faiss flat": (faiss.IndexFlatIP(DIM), 4 * DIM),
        "faiss SQ8": (faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_8bit, product), DIM),
        "faiss SQ4": (faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_4bit, product), DIM // 2),
        "faiss RaBitQ": (faiss.IndexRaBitQ(DIM, product), DIM // 8 + 8),
        "faiss PQ 16": (faiss.IndexPQ(DIM, 16, 8, product), 16),
    }
    for index, _ in made.values():
        index.train(rows[:10_000])
        index.add(rows)
    return made


def main() -> None:
    torch.set_num_threads(1)
    vectors, queries = drawn()
    truth = (queries @ vectors.t()).topk(K).indices
    none = torch.zeros(0, dtype=torch.int64)
    ways: dict[str, Callable[[torch.Tensor], Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, index in ours(vectors).items():
        if name == "pq of 16":
            index.remove(torch.arange(index.rows))
            index.add(vectors)
        scan = Scan(index, none)
        ways[name] = lambda query, scan=scan: scan.search(query, K)[1]
        rows[name] = {"bytes": index.row_bytes}
    for name, (other, size) in theirs(vectors).items():
        ways[name] = lambda query, other=other: torch.from_numpy(other.search(query.numpy(), K)[1])
        rows[name] = {"bytes": size}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.process_time()
            found = [way(query[None]) for query in queries]
            if turn:
                seconds[name].append(time.process_time() - start)
            else:
                rows[name] |= recall(shares(torch.cat(found), truth), K)
    for name, own in seconds.items():
        rows[name]["ms_a_query"] = round(1e3 * min(own) / QUERIES, 4)
        rows[name]["times_flat"] = round(float(np.median(np.divide(own, seconds["flat"]))), 3)
    record = {
        "benchmark": "retrieval_forms", "command": "python -m benchmarks.retrieval.forms", "rows": ROWS, "dim": DIM,
        "queries": QUERIES, "k": K, "load": os.getloadavg(), "forms": rows,
        "environment": {**environment(1), "faiss": package_version("faiss-cpu")},
    }  # fmt: skip
    atomic_write(RESULT, dump_json(record))
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
