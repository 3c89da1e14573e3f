"""One decoded token of SmolLM2-135M at 4 bits, here and in llama.cpp's Q4_0, in pairs.

    python -m benchmarks.language.decode_pairs --llama FOLDER --gguf SmolLM2-135M-Instruct.Q4_1.gguf [--threads 2]

Minima (`benchmarks.language.speed`) need an idle machine; the median of paired ratios of processor time does not. Each
pair decodes one token behind 64, who goes first changes, and ten pairs warm up. Ratios of two threads and more are of
wall time, for processor time counts threads that spin: run these on an idle machine. Each count of threads is a run of
its own in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.guides import placed
from benchmarks.language.llama_npm import Q4_0, Library, Model
from benchmarks.language.speed import BEHIND, OURS, Packed
from lessen.decoding import load_model
from lessen.decoding.packing import median_interval
from lessen.environment import environment
from lessen.files import atomic_write, dump_json

RESULT = Path(__file__).parents[1] / "results" / "language_decode_pairs.json"
WARM = 10


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=Path, required=True, help="folder of llama.cpp's shared objects")
    parser.add_argument("--gguf", type=Path, required=True, help="the shipped GGUF file")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--machine", help="name of a further machine, whose figures stand beside the first one's")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    library = Library(given.llama)
    with tempfile.TemporaryDirectory() as folder:
        library.quantise(given.gguf, Path(folder) / "q4_0.gguf", Q4_0)
        runners: dict[str, Any] = {"llama.cpp Q4_0": Model(library, Path(folder) / "q4_0.gguf", given.threads)}
        runners["lessen 4 bits"] = Packed(load_model("smollm2-135m-instruct", "float32")[0], *OURS["lessen 4 bits"])
        before, samples = os.getloadavg()[0], pairs(runners, given.pairs, given.threads)
    ratios = [theirs / ours for theirs, ours in zip(*samples.values(), strict=True)]
    record: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    found = {
        "environment": environment(), "llama.cpp build": library.build, "load": [before, os.getloadavg()[0]],
        "pairs": len(ratios), "faster": float(np.median(ratios)), "interval": median_interval(ratios),
        "least_ms": {name: 1e3 * min(own) for name, own in samples.items()},
        "command": f"python -m benchmarks.language.decode_pairs --pairs {given.pairs} --threads {given.threads}",
    }  # fmt: skip
    record[placed(f"{given.threads} threads", given.machine)] = found
    atomic_write(RESULT, dump_json(record))
    print({key: found[key] for key in ("faster", "interval", "least_ms", "load", "llama.cpp build")})


def pairs(runners: dict[str, Any], count: int, threads: int) -> dict[str, list[float]]:
    """Return seconds of a token for each runner, in turns: of the processor for one thread, of the wall for more."""
    clock = time.process_time if threads == 1 else time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        runner.run(list(range(100, 100 + BEHIND)))
    for number in range(count + WARM):
        for name in list(runners) if number % 2 else list(runners)[::-1]:
            start = clock()
            runners[name].run([7])
            samples[name].append(clock() - start)
            runners[name].cut(BEHIND)
    return {name: own[WARM:] for name, own in samples.items()}


if __name__ == "__main__":
    main()
