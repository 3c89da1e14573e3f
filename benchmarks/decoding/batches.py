"""Decoding batches: unpadded drafts (EMS-SD) against padding the same drafts, and plain batched `generate`.

    python -m benchmarks.decoding.batches --size 4 8 --questions QUESTIONS.jsonl

`padded` is the usual way: every sequence gets as many new tokens as the longest draft, all advance by the most that
any accepted, what lies between is masked, and finished sequences stay as padding. It gets exactly the drafts that
`lessen` would make, from the same tables and with the same kernels. Measured with planned drafts and with the paper's
fixed ten tokens after three agreeing ones. Raw samples are appended after each batch.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import DynamicCache

from benchmarks.decoding.copying import Bench, ratio
from benchmarks.decoding.prompts import EDIT, mt_redundant
from lessen.decoding import Decoder
from lessen.decoding.policy import Copier
from lessen.decoding.view import cache_argument
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json

RESULT = Path(__file__).parents[1] / "results" / "decoding_batches.json"
NEW = 64


class FixedDrafts(Decoder):
    """The paper's drafts: ten tokens at every hit."""

    @staticmethod
    def lengths(candidates, _costs):
        return [min(10, len(candidate.tokens)) for candidate in candidates]


@torch.inference_mode()
def padded(decoder: Decoder, model, prompts: list[list[int]], new: int, eos: int) -> tuple[list[list[int]], int]:
    """Decode with the decoder's drafts, padded; return the emitted tokens and the rows computed."""
    count, longest = len(prompts), max(map(len, prompts))
    copiers = [Copier(prompt, decoder._key_length, stops=frozenset({eos})) for prompt in prompts]
    ids = torch.tensor([[eos] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    cache, rows = DynamicCache(config=model.config), 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    named = cache_argument(model)
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, **{named: cache}
    ).logits
    out = [[token] for token in logits[:, -1].argmax(-1).tolist()]
    for copier, tokens in zip(copiers, out, strict=True):
        copier.observe(tokens)
    alive = [tokens[-1] != eos for tokens in out]
    while any(alive):
        active = [number for number in range(count) if alive[number]]
        candidates = [copiers[number].candidate(new - len(out[number]) - 1) for number in active]
        drafts: list[list[int]] = [[] for _ in prompts]
        for number, candidate, length in zip(
            active, candidates, decoder.lengths(candidates, decoder.costs), strict=True
        ):
            drafts[number] = candidate.tokens[:length]
        width = 1 + max(map(len, drafts))
        step = torch.tensor(
            [[tokens[-1], *draft, *[eos] * (width - 1 - len(draft))] for tokens, draft in zip(out, drafts, strict=True)]
        )
        fresh = torch.tensor([[1] * (1 + len(draft)) + [0] * (width - 1 - len(draft)) for draft in drafts])
        base = torch.tensor([[len(prompt) + len(tokens) - 1] for prompt, tokens in zip(prompts, out, strict=True)])
        logits = model(
            input_ids=step,
            attention_mask=torch.cat([mask, fresh], 1),
            position_ids=base + torch.arange(width),
            **{named: cache},
        ).logits
        rows += count * width
        best = logits.argmax(-1).tolist()
        kept = [0] * count
        for number in active:
            emitted: list[int] = []
            for place, token in enumerate(best[number][: 1 + len(drafts[number])]):
                emitted.append(token)
                finished = token == eos or len(out[number]) + len(emitted) == new
                if finished or place == len(drafts[number]) or token != drafts[number][place]:
                    alive[number] = not finished
                    break
            out[number] += emitted
            kept[number] = len(emitted)
            copiers[number].observe(emitted)
        advance = max(kept)
        cache.crop(-(width - advance)) if width > advance else None
        mask = torch.cat([mask, torch.tensor([[1] * one + [0] * (advance - one) for one in kept])], 1)
    return out, rows


def samples(bench: Bench, decoder: Decoder, prompts: list[list[int]], eos: int, order: int) -> dict[str, dict]:
    """Time the modes on one batch, in rotating order, all over the packed weights."""

    def plain():
        longest = max(map(len, prompts))
        ids = torch.tensor([[eos] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = bench.model_packed.generate(
            ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=eos
        )
        cut = [row[longest:].tolist() for row in out]
        return [row[: row.index(eos) + 1] if eos in row else row for row in cut], 0

    def unpadded():
        done = decoder.complete(prompts, max_new_tokens=NEW, do_sample=False)
        return [each.tokens for each in done], decoder.report.rows

    def alone():
        done = [decoder.complete([prompt], max_new_tokens=NEW, do_sample=False)[0].tokens for prompt in prompts]
        return done, 0

    modes = {
        "plain": plain,
        "padded": lambda: padded(decoder, bench.model_packed, prompts, NEW, eos),
        "unpadded": unpadded,
        "one_by_one": alone,
    }
    names = list(modes)
    found, tokens = {}, {}
    for name in names[order % 4 :] + names[: order % 4]:
        wall, processor = time.perf_counter(), time.process_time()
        tokens[name], rows = modes[name]()
        found[name] = {
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - processor,
            "tokens": sum(map(len, tokens[name])),
            "rows": rows,
        }
    for name in names:
        found[name]["identical"] = sum(a == b for a, b in zip(tokens[name], tokens["one_by_one"], strict=True))
    return found


def read() -> dict:
    if RESULT.exists():
        return json.loads(RESULT.read_text())
    return {
        "benchmark": "decoding_batches",
        "command": "python -m benchmarks.decoding.batches --size 4 8 --questions ...",
        "model": "SmolLM2-135M-Instruct (Q4_1 GGUF dequantised to float32)",
        "new_tokens": NEW,
        "environment": {**environment(1), "transformers": package_version("transformers")},
        "rows": [],
    }


def prompts_of(bench: Bench, questions: Path | None) -> list[list[int]]:
    """Edit prompts, and MT-Redundant second turns after a plain first answer where the questions are at hand."""
    found = [bench.user(text) for text in EDIT[::2]]
    if questions is None or not questions.exists():
        print("only edit prompts: give --questions the file question_redundant.jsonl for second turns")
        return found
    for question in mt_redundant(questions)[3::13][:6]:
        first, second = question["turns"]
        answer = bench.tokenizer.decode(bench.lessen(bench.user(first))[0], skip_special_tokens=True)
        turns = [("user", first), ("assistant", answer), ("user", second)]
        found.append(bench.chat([{"role": role, "content": content} for role, content in turns]))
    return found


def summary() -> None:
    record, table = read(), {}
    for size, drafts in dict.fromkeys((row["size"], row["drafts"]) for row in record["rows"]):
        rows = [row for row in record["rows"] if (row["size"], row["drafts"]) == (size, drafts)]
        line = {}
        for against in ("padded", "plain", "one_by_one"):
            wall, cpu = ratio(rows, "unpadded", "wall_s", against), ratio(rows, "unpadded", "cpu_s", against)
            line[against] = {"wall": wall, "cpu": cpu}
        kept = sum(row["samples"]["unpadded"]["rows"] for row in rows)
        all_rows = sum(row["samples"]["padded"]["rows"] for row in rows)
        table[f"{size} {drafts}"] = {"batches": len(rows), "throughput_over": line, "rows_saved": 1 - kept / all_rows}
        text = ", ".join(f"{name} {value['cpu'][0]:.2f} (wall {value['wall'][0]:.2f})" for name, value in line.items())
        same = sum(row["samples"]["unpadded"]["identical"] for row in rows)
        print(
            f"batch {size}, {drafts} drafts, {len(rows)} batches: throughput over {text}; "
            f"rows saved {1 - kept / all_rows:.0%}; identical to alone {same}/{size * len(rows)}"
        )
    record["summary"] = table
    atomic_write(RESULT, dump_json(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="*", default=[4, 8])
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--drafts", nargs="*", default=["planned", "fixed10"])
    parser.add_argument("--seconds", type=float, default=1e9, help="start no batch after this processor time")
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    if given.summary:
        summary()
        return
    bench = Bench(NEW)
    kinds = {"planned": lambda: bench.packed, "fixed10": lambda: bench.decoder(True, FixedDrafts, key_length=3)}
    decoders = {name: kinds[name]() for name in given.drafts}
    prompts = prompts_of(bench, given.questions)
    done = {(row["size"], row["drafts"], row["batch"]) for row in read()["rows"]}
    todo = [
        (size, drafts, number)
        for size in given.size
        for number in range(len(prompts) // size)
        for drafts in given.drafts
        if (size, drafts, number) not in done
    ]
    for size, drafts, number in todo:
        if time.process_time() > given.seconds:
            print("time is up; run again to go on")
            return
        batch = prompts[number :: len(prompts) // size][:size]
        found = samples(bench, decoders[drafts], batch, bench.tokenizer.eos_token_id, number)
        record = read()
        record["rows"].append({"size": size, "drafts": drafts, "batch": number, "samples": found})
        atomic_write(RESULT, dump_json(record))
        print(size, drafts, number, {name: round(one["wall_s"], 2) for name, one in found.items()}, flush=True)
    summary()


if __name__ == "__main__":
    main()
