"""The same GGUF file in llama.cpp and in lessen, and what each part of lessen's gain over transformers comes from.

    python -m benchmarks.decoding.llamacpp edit open --gguf FILE [--build TEXT]
    python -m benchmarks.decoding.llamacpp --summary

Needs llama-cpp-python (any build; say which with --build). Every prompt is decoded greedily by every mode before the
next prompt, in rotating order, with one thread; ratios are of processor time, as in `copying.py`. llama.cpp computes
with the file's 4-bit weights and 8-bit activations, lessen with the same weights dequantised to float32, so texts may
differ; the share of equal first tokens is recorded.

Modes: `plain` (transformers `generate`); `loop` (lessen without drafts, stock kernels); `loop_packed` (with packed
weights); `lessen` (with drafts as well); `llamacpp`; `llamacpp_lookup` (with its own prompt lookup, ten tokens).
The gain over plain is then a product of three measured ratios: plain / loop (the lean loop), loop / loop_packed
(packing), loop_packed / lessen (copying).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.decoding.copying import Bench, ratio
from benchmarks.decoding.prompts import EDIT, OPEN
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json

RESULT = Path(__file__).parents[1] / "results" / "decoding_llamacpp.json"
NEW = 64
MODES = ("plain", "loop", "loop_packed", "lessen", "llamacpp", "llamacpp_lookup")
GAINS = {"lean loop": ("plain", "loop"), "packing": ("loop", "loop_packed"), "copying": ("loop_packed", "lessen")}


class Peer:
    """llama.cpp through llama-cpp-python, greedy, one thread."""

    def __init__(self, gguf: Path) -> None:
        import llama_cpp
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        options = {"n_ctx": 2048, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
        self.plain = llama_cpp.Llama(str(gguf), **options)
        lookup = LlamaPromptLookupDecoding(num_pred_tokens=10)
        self.lookup = llama_cpp.Llama(str(gguf), draft_model=lookup, logits_all=True, **options)
        self.facts = {
            "llama-cpp-python": llama_cpp.__version__,
            "features": llama_cpp.llama_print_system_info().decode().strip(" |"),
        }

    @staticmethod
    def decode(llama, prompt: list[int]) -> list[int]:
        tokens: list[int] = []
        for token in llama.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0, reset=True):
            tokens.append(int(token))
            if token == llama.token_eos() or len(tokens) == NEW:
                break
        return tokens


def measure(names: list[str], gguf: Path, build: str, limit: int) -> None:
    bench, peer = Bench(NEW), Peer(gguf)
    record = read()
    record["peer"] = peer.facts | {"build": build, "file": gguf.name}
    record["packed_rows"] = bench.packed.packing.rows
    record["costs"] = {"stock": bench.stock.costs.relative(), "packed": bench.packed.costs.relative()}
    done = {(row["set"], row["prompt"]) for row in record["rows"]}
    texts = {"edit": EDIT, "open": OPEN}
    for name in names:
        for number, text in enumerate(texts[name][:limit]):
            if (name, number) in done:
                continue
            prompt = bench.user(text)
            record["rows"].append(one(bench, peer, name, number, prompt))
            atomic_write(RESULT, dump_json(record))


def one(bench: Bench, peer: Peer, name: str, number: int, prompt: list[int]) -> dict:
    found, shift = {}, number % len(MODES)
    for mode in MODES[shift:] + MODES[:shift]:
        wall, processor = time.perf_counter(), time.process_time()
        if mode.startswith("llamacpp"):
            tokens = peer.decode(peer.lookup if mode.endswith("lookup") else peer.plain, prompt)
        else:
            tokens = getattr(bench, mode)(prompt)[0]
        found[mode] = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor, "ids": tokens}
    want = found["plain"]["ids"]
    for sample in found.values():
        ids = sample.pop("ids")
        same = next((place for place, pair in enumerate(zip(ids, want, strict=False)) if pair[0] != pair[1]), len(ids))
        sample |= {"tokens": len(ids), "identical": ids == want, "same_tokens": same}
        sample["cpu_s_a_token"] = sample["cpu_s"] / len(ids)
    print(name, number, {mode: round(sample["cpu_s"], 2) for mode, sample in found.items()}, flush=True)
    return {"set": name, "prompt": number, "prompt_tokens": len(prompt), "samples": found}


def read() -> dict:
    if RESULT.exists():
        return json.loads(RESULT.read_text())
    return {
        "benchmark": "decoding_llamacpp",
        "command": "python -m benchmarks.decoding.llamacpp edit open --gguf FILE --build TEXT",
        "model": "SmolLM2-135M-Instruct.Q4_1.gguf; lessen and transformers read it dequantised to float32",
        "new_tokens": NEW,
        "threads": 1,
        "environment": {**environment(1), "transformers": package_version("transformers")},
        "rows": [],
    }


def summary() -> None:
    record = read()
    record["summary"] = {}
    for name in dict.fromkeys(row["set"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["set"] == name]
        table = {"prompts": len(rows), "tokens_per_cpu_s": {}, "gain": {}}
        for mode in MODES:
            samples = [row["samples"][mode] for row in rows]
            table["tokens_per_cpu_s"][mode] = sum(s["tokens"] for s in samples) / sum(s["cpu_s"] for s in samples)
        table["over_plain"] = {mode: ratio(rows, mode, "cpu_s_a_token")[:3] for mode in MODES[1:]}
        table["llamacpp_over_lessen"] = ratio(rows, "llamacpp", "cpu_s_a_token", "lessen")[:3]
        table["gain"] = {part: ratio(rows, after, "cpu_s", before)[:3] for part, (before, after) in GAINS.items()}
        table["identical"] = {mode: sum(row["samples"][mode]["identical"] for row in rows) for mode in MODES}
        record["summary"][name] = table
        print(name, json.dumps(table, indent=1))
    atomic_write(RESULT, dump_json(record))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help="edit, open")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--build", default="", help="how the installed llama-cpp-python was built")
    parser.add_argument("--limit", type=int, default=10, help="prompts of a set")
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    if given.sets:
        if given.gguf is None:
            parser.error("give --gguf, the file that both sides read")
        measure(given.sets, given.gguf, given.build, given.limit)
    summary()
