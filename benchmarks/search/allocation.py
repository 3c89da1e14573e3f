"""A width for each of a thousand layers within a budget of bytes: how long the proven best takes, beside HiGHS.

    python -m benchmarks.search.allocation [--limit 20]   # writes benchmarks/results/search_allocation.json

Twelve formats of 2 to 16 bits a layer; harms fall fourfold a bit, by sensitivities drawn log-normal. Layers of four
shapes of a language model, of seven odd shapes, and all of sizes of their own; three draws at three budgets each. HiGHS
(scipy's `milp`, gap 0) solves the first of each kind, for at most `--limit` seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from benchmarks.guides import RESULTS
from lessen.environment import environment
from lessen.files import atomic_write
from lessen.methods.weights._shared.knapsack import Choice, allocate

BITS = (2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 8, 16)
KINDS = {
    "four shapes": [4096 * 4096, 4096 * 1024, 4096 * 11008, 128 * 4096],
    "seven odd shapes": [576 * 576, 576 * 192, 576 * 1536, 1000 * 333, 77 * 1003, 64 * 65, 4097 * 33],
    "all differ": list(range(100_003, 200_003, 97)),
}
LAYERS = 1000


def drawn(sizes: list[int], seed: int) -> list[list[Choice]]:
    """Return bytes and harm of every format of every layer."""
    draw, layers = np.random.default_rng(seed), []
    for size in draw.choice(sizes, LAYERS):
        scale = draw.lognormal(0, 1.5) * float(size)
        layers.append([(int(size * bits / 8), float(scale * 4.0**-bits * draw.uniform(0.8, 1.2))) for bits in BITS])
    return layers


def solved(layers: list[list[Choice]], budget: int, limit: float) -> dict[str, Any]:
    """Return HiGHS's least harm, whether it proved it, and its seconds."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    flat = [choice for layer in layers for choice in layer]
    owner = np.repeat(np.arange(len(layers)), [len(layer) for layer in layers])
    rows = np.concatenate([owner, np.full(len(flat), len(layers))])
    values = np.concatenate([np.ones(len(flat)), np.array([size for size, _ in flat]) / budget])
    matrix = csr_matrix((values, (rows, np.tile(np.arange(len(flat)), 2))))
    harms = np.array([harm for _, harm in flat])
    ones = np.ones(len(layers))
    limits = LinearConstraint(matrix, np.append(ones, -np.inf), np.append(ones, 1.0))
    start = time.process_time()
    found = milp(
        harms / harms.max(), integrality=np.ones(len(flat)), bounds=Bounds(0, 1), constraints=limits,
        options={"mip_rel_gap": 0, "time_limit": limit},
    )  # fmt: skip
    spent = time.process_time() - start
    return {"harm": float(found.fun * harms.max()), "proved": found.status == 0, "cpu_seconds": round(spent, 2)}


def main() -> None:
    """Solve all of it and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=20.0)
    asked = parser.parse_args()
    kinds: dict[str, Any] = {}
    for kind, sizes in KINDS.items():
        seconds, filled = [], []
        for seed in range(3):
            layers = drawn(sizes, seed)
            for number in (1, 4, 8):
                budget = sum(layer[number][0] for layer in layers) + 12345
                start = time.process_time()
                taken = allocate(layers, budget, kind)
                seconds.append(time.process_time() - start)
                filled.append(sum(layer[pick][0] for layer, pick in zip(layers, taken, strict=True)) / budget)
                if seed == 0 and number == 4:
                    peer = solved(layers, budget, asked.limit)
                    harm = sum(layer[pick][1] for layer, pick in zip(layers, taken, strict=True))
                    peer["over ours"] = peer["harm"] / harm - 1
        kinds[kind] = {"most_seconds": round(max(seconds), 3), "least_filled": min(filled), "HiGHS": peer}
        print(kind, kinds[kind], flush=True)
    told = {"layers": LAYERS, "formats": len(BITS), "kinds": kinds, "env": environment(1)}
    atomic_write(RESULTS / "search_allocation.json", json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
