"""Sentences and table rows of the pages on few-bit language models, made from committed results."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from benchmarks.guides import read
from benchmarks.language.cross_tables import apart


def figures(documents: dict[str, list[float]]) -> dict[str, float]:
    """Return perplexity, KL in nats a token and the share of flipped tokens in percent, not rounded."""
    nll, kl, flips = (sum(documents[name]) / sum(documents["tokens"]) for name in ("nll", "kl", "flips"))
    return {"perplexity": math.exp(nll), "kl": kl, "flips": 100 * flips}


def weights() -> Iterator[str]:
    yield from _weights_settings()
    yield from _weights_speed()
    rows = read("language_fewbits")["rows"]
    yield from _weights_parts(rows)
    yield from _weights_whole(rows)
    found = read("language_quantising")["rows"]
    small, large = found["smollm2 gptq"], found["llama-1b gptq"]
    held = small["allowed"]["block"] + small["allowed"]["activations"]
    yield f"inverted in place: {small['peak_growth'] / 1e6:.0f} MB for SmolLM2 with {small['tokens']:,} tokens"
    yield f"a block in float32 with all activations is {held / 1e6:.0f}"
    whole = large["whole_model_cpu_s"] / 60
    yield f"A block of a 1.1B Llama takes {large['cpu_s']:.0f} s of one core, 22 of them {whole:.0f} minutes"


def _weights_settings() -> Iterator[str]:
    """Arithmetic of the stored forms, and settings."""
    yield f"at 4 bits and groups of 64, {4 + 8 * 4 / 64} bits a weight"
    yield f"With `scale_bits=6` a group takes {2 * 6 / 8} bytes in place of 4"
    yield f"groups of 32 then cost {2 * 6 / 32} bits and the row's share"
    yield f"groups of 64; 3 bits are {3 + 8 * 4 / 64} all told"
    yield "where the sum of \\|error\\|^2.4 falls"
    yield "none: 0.01, with `output` and `tokens` 0.1"
    yield "`damping=0.1` of OAC was chosen among 0.03, 0.1, 0.3 and 1 on validation documents"
    yield "| 3.6 at 3 bits, and 32 for each weight kept (some 1 %) |"
    yield "seven levels for each row of 128 inputs | 2.9 |"
    yield "five levels a row | about 1.2 |"
    yield "holds every method at 8, 4, 3, 2 and about 1.1 bits"
    yield "BiLLM's paper says 1.1 bits"


def _weights_speed() -> Iterator[str]:
    found = read("language_speed")["1 threads"]
    names = {"lessen 4 bits": "lessen, 4 bits", "lessen 8 bits": "lessen, 8 bits", "torch fp32": "torch, float32",
             "lessen 4 bits, float inputs": "lessen, 4 bits, float inputs", "torch bf16": "torch, bfloat16"}  # fmt: skip
    rates = {}
    for name, row in found["seconds"].items():
        rates[name] = found["prompt"] / row["prefill"]["cpu"], 1 / row["decode"]["cpu"]
        yield f"| {names.get(name, name)} | {rates[name][0]:.0f} | {rates[name][1]:.0f} |"
    yield f"Prefill is {rates['lessen 4 bits'][0] / rates['torch fp32'][0]:.1f} times torch's float32"
    pairs = read("language_decode_pairs")["1 threads"]
    low, high = pairs["interval"]
    yield f"In {pairs['pairs']} pairs of one token"
    yield f"ours is {pairs['faster']:.2f} [{low:.2f}, {high:.2f}] times as fast as llama.cpp's Q4_0"
    band = read("language_bandwidth")["4 bits, 1 threads"]
    ours, other, reading = (1e3 * band["seconds"][name]["cpu"] for name in ("decode", "llama.cpp Q4_0", "read"))
    yield (
        f"A Llama of 1.1 billion random 4-bit weights decodes {band['bytes'] / 1e6:.0f} MB a token in {ours:.1f} ms, "
        f"llama.cpp the same shape in Q4_0 in {other:.1f}, and torch reads as many bytes in {reading:.1f}: "
        f"{100 * band['share']['cpu']:.0f} % of that rate, under a load of {band['load']:.0f}"
    )
    rounded = read("language_containers")["recipes"]["symmetric"]["said"]["onnxruntime, level 4"]
    yield f"differs by {100 * rounded['as a share of the largest']:.0f} % of the largest logit"


def _said(row: dict[str, Any]) -> str:
    found = figures(row["documents"])
    large = found["perplexity"] > 1000
    return f"{found['perplexity']:.{0 if large else 2}f} | {found['kl']:.3f} | {found['flips']:.1f} % |"


def _weights_parts(rows: dict[str, Any]) -> Iterator[str]:
    yield f"| original | {figures(rows['original']['documents'])['perplexity']:.2f} | 0 | 0 |"
    names = {"3 rtn": "`rtn:bits=3`", "3 gptq": "`gptq:bits=3`", "3 oac": "`gptq:bits=3,hessian=output` (OAC)",
             "2 rtn": "`rtn:bits=2`, 2.5 bits", "2 gptq": "`gptq:bits=2`",
             "2 oac": "`gptq:bits=2,hessian=output` (OAC)"}  # fmt: skip
    for name, shown in names.items():
        yield f"| {shown} | {_said(rows[f'part {name}'])}"
    rtn, gptq, oac, gptq2, oac2 = (
        rows[f"part {name}"]["documents"] for name in ("3 rtn", "3 gptq", "3 oac", "2 gptq", "2 oac")
    )
    below, kl, both = apart(rtn, gptq, "nll"), apart(gptq, oac, "kl"), apart(gptq, oac, "nll")
    two = apart(gptq2, oac2, "nll")
    yield f"GPTQ lies {below[1]:.2f} to {below[2]:.2f} nats a token below RTN"
    yield f"OAC lies {kl[1]:.3f} to {kl[2]:.3f} below GPTQ in KL"
    yield f"do not tell them apart ({both[2]:.3f} below to {-both[1]:.3f} above)"
    yield f"at 2 bits it lies {two[1]:.3f} to {two[2]:.3f} nats a token below"
    spqr = rows["part 3 spqr"]
    found = figures(spqr["documents"])
    yield (
        f"{spqr['bits_per_weight']:.2f} bits with its outliers, perplexity {found['perplexity']:.2f}, KL {found['kl']:.3f}"
    )


def _weights_whole(rows: dict[str, Any]) -> Iterator[str]:
    names = {"whole 4 oac searched": "`gptq:bits=4,hessian=output,ranges=search`", "whole 4 rtn": "`rtn:bits=4`",
             "whole 4 coded scales": "`gptq:bits=4,group=32,scale_bits=6,hessian=tokens,ranges=search,refit=2`",
             "whole 3 coded scales": "the same, `bits=3`", "llama.cpp Q4_0": "llama.cpp Q4_0",
             "llama.cpp Q3_K_M": "llama.cpp Q3_K_M (falls back for rows of 576)"}  # fmt: skip
    for name, shown in names.items():
        row = rows[name]
        yield f"| {shown} | {row['bits_per_weight']:.2f} | {row['state_bytes'] / 1e6:.1f} | {_said(row)}"
    ours, theirs = rows["whole 4 oac searched"], rows["llama.cpp Q4_0"]
    original, mine, other = (figures(row["documents"])["perplexity"] for row in (rows["original"], ours, theirs))
    yield (
        f"OAC loses {(mine - original) / (other - original):.2f} of the perplexity that Q4_0 loses, "
        f"in {ours['state_bytes'] / theirs['state_bytes']:.2f} of its bytes"
    )
    _, low, high = apart(rows["llama.cpp Q3_K_M"]["documents"], ours["documents"], "nll")
    yield f"the paired interval to Q3_K_M is {low:.3f} to {high:.3f} nats a token in its favour"
    small, three = rows["whole 3 coded scales"], rows["llama.cpp Q3_K_M"]
    less = (three["state_bytes"] - small["state_bytes"]) / 1e6
    yield f"at {small['bits_per_weight']:.2f} bits it loses more than Q3_K_M, which takes {less:.0f} MB more here"
    yield f"The row of OAC took {ours['cpu_s'] / 60:.1f} minutes of one AVX2 core"


def scales() -> Iterator[str]:
    rows = read("language_scaled")["rows"]

    def kl(name: str) -> float:
        return figures(rows[name]["documents"])["kl"]

    yield f"KL is {kl('tables 8'):.4f} at 8 bits and {kl('tables 4'):.3f} at 4, hence the default"
    yield f"(uniform 4 bits in groups of 64 are {4 + 8 * 4 / 64})"
    before, files = read("language_fewbits")["rows"]["original"], read("language_fewbits")["rows"]
    yield f"to float32, whose perplexity is {figures(before['documents'])['perplexity']:.2f}"
    names = {"rtn": "`rtn`", "rtn search": "`rtn:ranges=search`", "awq": "`awq`", "quarot+rtn": "`quarot`, `rtn`",
             "quarot+gptq": "`quarot`, `gptq`", "mixed": "`linear-mixed-bits:average=3.5`",
             "mixed by lot": "the same, `allocation=random`"}  # fmt: skip
    for name, shown in names.items():
        row = rows[f"part 3 {name}"]
        yield f"| {shown} | {row['bits_per_weight']:.2f} | {_said(row)}"
    bits = rows["part 4 rtn"]["bits_per_weight"]
    yield f"At 4 bits ({bits:.2f} a weight) `rtn` has KL {kl('part 4 rtn'):.3f} and `awq` {kl('part 4 awq'):.3f}"
    yield f"At 3 bits `gptq` alone has KL {figures(files['part 3 gptq']['documents'])['kl']:.3f}"
    yield from _scales_elsewhere()


def _scales_elsewhere() -> Iterator[str]:
    found = read("retrieval_minilm")["rows"]
    yield f"ndcg@10 of float32 {found['float32']['ndcg@10']:.3f}"
    yield f"| float32 | {found['float32']['bytes'] / 1e6:.1f} | | |"
    names = {"int8 dynamic": "`linear-int8`", "rtn 4": "`rtn:bits=4`",
             "rtn 4, tables stay": "`rtn:bits=4,table_bits=null`"}  # fmt: skip
    for name, shown in names.items():
        row = found[name]
        change, low, high = row["ndcg@10 difference"]
        yield f"| {shown} | {row['bytes'] / 1e6:.1f} | {change:+.3f} [{low:.3f}, {high:.3f}] | {row['cosine']:.3f} |"
    for name, shown in {
        "channel": "a scale for each output channel",
        "tensor": "one scale for all (`weights=tensor`)",
    }.items():
        row = read("vision_lite0")["rows"][f"int8 {name} minmax"]
        low, high = (100 * end for end in row["agreement_ci"])
        yield f"| {shown} | {100 * row['agreement']:.1f} % [{low:.1f}, {high:.1f}] | {row['cosine']:.3f} |"


def deploy() -> Iterator[str]:
    found = read("language_containers")
    versions = found["env"]
    major = ".".join(versions["transformers"].split(".")[:2])
    yield f"transformers {major} with compressed-tensors {versions['compressed-tensors']}"
    said = found["recipes"]["symmetric"]["said"]
    for name, shown, near in (
        ("onnxruntime, level 4", "onnxruntime, accuracy level 4", ""),
        ("llama.cpp", "llama.cpp 0.5.0 (npm build), 8 bit activations", ", by margins below 0.15"),
    ):
        row = said[name]
        assert not near or row["widest margin of those"] < 0.15
        yield (
            f"| {shown} | {100 * row['as a share of the largest']:.1f} % "
            f"| {row['tokens whose arg-max differs']} of {said['tokens']}{near} | {row['equal greedy texts']} of 4 |"
        )
    screen = read("decoding_screened")
    half, full = screen["times"]["of the head in bf16"], screen["times"]["of the head in float32"]
    yield (
        f"the bf16 head's token at {screen['tokens of the bf16 head (float64 products)']:,} of {screen['positions']:,}, "
        f"reading at most {100 * max(screen[_SHARE], screen['one by one'][_SHARE.split(',')[0]]):.1f} % of its bytes, in {_ratio(half)} of the bf16 head's "
        f"time and {_ratio(full)} of the float32 head's"
    )


_SHARE = "share of the bf16 head's bytes, at most"


def _ratio(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['median']:.2f} [{low:.2f}, {high:.2f}]"
