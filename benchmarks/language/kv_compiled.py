"""Compiled decoding with keys and values in codes: what a long context costs with each form of the cache.

    python -m benchmarks.language.kv_compiled speed --threads 1
    python -m benchmarks.language.kv_compiled quality --text wikitext2/test.txt

SmolLM2-135M-Instruct at 4 bits (groups of 64, int8 activations). `speed` fills caches with made-up states and lets
forms take turns at one token; ratios to the float32 cache are judged by the median over pairs with its interval by
order statistics, of processor time where one thread runs. `quality` reads texts 64 tokens at a time, so that later
pieces see codes, and compares log-probabilities with those of the float32 cache; the interval draws texts. It leaves
activations as they come: rounded ones jump between two orders of float sums already, by more than 8 bit codes do.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lessen.decoding import load_model
from lessen.decoding.compiled.engine import CompiledEngine
from lessen.decoding.kv_codes import Form
from lessen.decoding.kv_states import held_bytes
from lessen.decoding.packing import median_interval
from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.method import Context
from lessen.methods.weights.rtn import RTN

RESULT = Path(__file__).parents[1] / "results" / "language_kv_compiled.json"
BITS, GROUP, RESIDUAL, EXACT = (8, 4, 2), 32, 128, 4
CONTEXTS = (2048, 8064)
PIECE = 64


class _None:
    name = "none"


def engines(model: Any, activations: Literal["float", "int8"]) -> dict[str, CompiledEngine]:
    """Return an engine for each form of the cache over the same packed model."""
    method = RTN(bits=4, group=64, activations=activations)
    made = method.apply(copy.deepcopy(model), _None(), Context())  # type: ignore[arg-type]
    found = {"float32": CompiledEngine(made)}
    for bits in BITS:
        found[f"{bits} bits"] = CompiledEngine(made)
        found[f"{bits} bits"].keep_codes(Form(bits, GROUP, RESIDUAL), EXACT)
    return found


def speed(given: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Return ratios of a decoded token at each context."""
    ready, rows = engines(model, "int8"), {}
    clock = time.process_time if given.threads == 1 else time.perf_counter
    for context in CONTEXTS:
        caches = {name: filled(engine, context) for name, engine in ready.items()}
        samples: dict[str, list[float]] = {name: [] for name in ready}
        for turn in range(given.pairs + 2):
            for name in list(ready) if turn % 2 else list(ready)[::-1]:
                start = clock()
                ready[name].run([(caches[name], [5])])
                samples[name].append(clock() - start)
                ready[name].cut(caches[name], context)
        rows[f"{context} tokens"] = {name: _row(own[2:], samples["float32"][2:]) | {
            "bytes_a_token": held_bytes(caches[name]) / context} for name, own in samples.items()}  # fmt: skip
        for name, row in rows[f"{context} tokens"].items():
            print(context, name, {key: np.round(row[key], 3).tolist() for key in ("faster", "interval", "least_ms")})
    return {"pairs": given.pairs, "clock": clock.__name__, "rows": rows}


def _row(own: list[float], plain: list[float]) -> dict[str, Any]:
    ratios = [before / after for after, before in zip(own, plain, strict=True)]
    return {"faster": float(np.median(ratios)), "interval": median_interval(ratios), "least_ms": 1e3 * min(own)}


def filled(engine: CompiledEngine, context: int) -> Any:
    """Return a cache of so many made-up tokens, a layer of which is the same in every form."""
    cache, generator = engine.new_cache(context + 8), torch.Generator().manual_seed(0)
    for layer in range(len(engine.operands)):
        states = torch.randn(2, engine.heads.keys, context, engine.heads.width, generator=generator)
        cache.write(layer, *states)
    cache.added(context)
    return cache


def quality(given: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Return KL to the float32 cache and perplexity over texts of a file."""
    from lessen.architectures.loading import host_folder, load_tokenizer

    tokenizer = load_tokenizer(host_folder("smollm2-135m-instruct"))
    ids = tokenizer(given.text.read_text()[: given.windows * given.window * 8])["input_ids"]
    windows = [ids[start : start + given.window] for start in range(0, given.windows * given.window, given.window)]
    ready, sums = engines(model, "float"), {}
    for number, window in enumerate(windows):
        expected = read(ready["float32"], window)
        following = torch.tensor(window[1:])
        for name, engine in ready.items():
            found = expected if name == "float32" else read(engine, window)
            kl = (expected.exp() * (expected - found)).sum(1)[PIECE + RESIDUAL + GROUP :].mean()
            loss = -found[:-1].gather(1, following[:, None]).mean()
            sums.setdefault(name, []).append((float(kl), float(loss)))
        print(number, {name: np.mean(each, 0).round(5).tolist() for name, each in sums.items()}, flush=True)
    draws = np.random.default_rng(0).integers(0, len(windows), (2000, len(windows)))
    rows = {}
    for name, each in sums.items():
        kl, loss = np.array(each).T
        drawn = kl[draws].mean(1)
        rows[name] = {"kl": float(kl.mean()), "interval": np.quantile(drawn, (0.025, 0.975)).tolist(),
                      "perplexity": float(np.exp(loss.mean()))}  # fmt: skip
    return {"text": given.text.name, "windows": len(windows), "window": given.window, "piece": PIECE, "rows": rows}


def read(engine: CompiledEngine, window: list[int]) -> torch.Tensor:
    """Return log-probabilities of a text read in pieces."""
    cache = engine.new_cache(len(window))
    parts = [engine.run([(cache, window[start : start + PIECE])]) for start in range(0, len(window), PIECE)]
    return torch.cat(parts).log_softmax(1)


PARTS = {"speed": speed, "quality": quality}


def main() -> None:
    """Measure one part and add it to the committed result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--window", type=int, default=2048)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load_model("smollm2-135m-instruct", "float32")[0]
    before = os.getloadavg()[0]
    found = PARTS[given.part](given, model)
    record: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    name = f"speed, {given.threads} threads" if given.part == "speed" else "quality"
    record[name] = {
        "environment": environment(), "load": [before, os.getloadavg()[0]], "group": GROUP, "residual": RESIDUAL,
        "exact": EXACT, **found,
    }  # fmt: skip
    atomic_write(RESULT, dump_json(record))


if __name__ == "__main__":
    main()
