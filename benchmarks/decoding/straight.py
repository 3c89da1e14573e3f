"""One pass as straight lines of operations against the same pass through the model's own forward.

    python -m benchmarks.decoding.straight

SmolLM2-135M-Instruct, float32, one thread, 200 cached tokens. The two passes take turns; the ratio of their processor
times is judged by the median over pairs with its interval by order statistics.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from lessen.decoding import load_model
from lessen.decoding.packing import median_interval
from lessen.decoding.ragged import RaggedEngine
from lessen.decoding.straight import StraightEngine
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json

RESULT = Path(__file__).parents[1] / "results" / "decoding_straight.json"
CACHED, PAIRS, ROWS = 200, 31, (1, 8, 32)


def main() -> None:
    torch.set_num_threads(1)
    model, _ = load_model("smollm2-135m-instruct")
    engines = {"straight": StraightEngine(model), "own forward": RaggedEngine(model)}
    caches = {name: engine.new_cache(CACHED + max(ROWS)) for name, engine in engines.items()}
    for name, engine in engines.items():
        engine.run([(caches[name], list(range(2, 2 + CACHED)))])
    found = {}
    for rows in ROWS:
        samples: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(PAIRS + 2):
            for name in list(engines) if number % 2 else list(engines)[::-1]:
                start = time.process_time()
                engines[name].run([(caches[name], [5] * rows)])
                samples[name].append(time.process_time() - start)
                engines[name].cut(caches[name], CACHED)
        pairs = list(zip(*(each[2:] for each in samples.values()), strict=True))  # the first two warm up
        ratios = [straight / own for straight, own in pairs]
        found[str(rows)] = {
            "ratio": sorted(ratios)[len(ratios) // 2],
            "interval": median_interval(ratios),
            "cpu_s": {name: each[2:] for name, each in samples.items()},
        }
        print(rows, round(found[str(rows)]["ratio"], 3), [round(end, 3) for end in found[str(rows)]["interval"]])
    record = {
        "benchmark": "decoding_straight",
        "command": "python -m benchmarks.decoding.straight",
        "model": "SmolLM2-135M-Instruct (Q4_1 GGUF dequantised to float32)",
        "cached_tokens": CACHED,
        "environment": {**environment(1), "transformers": package_version("transformers")},
        "rows": found,
    }
    atomic_write(RESULT, dump_json(record))


if __name__ == "__main__":
    main()
