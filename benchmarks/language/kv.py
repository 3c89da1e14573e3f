"""What a cache in codes costs and saves, and what full-precision states of the first tokens give back.

    python -m benchmarks.language.kv quality --text wikitext2/test.txt     KL, perplexity, bytes a token
    python -m benchmarks.language.kv speed                                 a decoding pass at 2k and 8k tokens
    python -m benchmarks.language.kv intact                                RTN and GPTQ with and without IntactKV

SmolLM2-135M-Instruct, one thread. Every window starts with the model's start-of-text token, which its tokenizer does
not add. `quality` reads windows of 1024 tokens in pieces of 64, so that later pieces see codes. `speed` fills caches
with made-up states, lets forms take turns, and judges ratios of processor time by the median over pairs with its
interval by order statistics. Intervals of quality are those of 2000 draws of documents. What is found is written as it
comes, so that a run that is stopped leaves what it has. `intact` decodes few-bit layers once, which gives the same
numbers sooner.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lessen.decoding.kv_codes import Form
from lessen.decoding.kv_engine import CodedCache
from lessen.decoding.kv_states import held_bytes
from lessen.decoding.kv_stored import KeyValueCodes, detach
from lessen.decoding.packing import median_interval
from lessen.decoding.ragged import RaggedEngine, SequenceCache
from lessen.decoding.straight import StraightEngine
from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json
from lessen.methods.weights.gptq import GPTQ
from lessen.methods.weights.intactkv import IntactKV
from lessen.methods.weights.rtn import RTN
from lessen.recipe import Recipe
from lessen.stored.linears.group_quantized import GroupQuantizedLinear
from lessen.tasks.language.perplexity import LanguageOptions, LanguageTask

RESULTS = Path(__file__).parents[1] / "results"
FORMS = {"8 bits": (8, 128), "4 bits": (4, 128), "2 bits": (2, 128), "2 bits, residual 32": (2, 32)}
GROUP, PIECE, WINDOW = 32, 64, 1024
CONTEXTS, PAIRS = (2048, 8064), 15


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("quality", "speed", "intact"))
    parser.add_argument("--text", default="news")
    parser.add_argument("--documents", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = {
        "benchmark": f"language_kv_{given.part}",
        "model": "SmolLM2-135M-Instruct (Q4_1 GGUF dequantised to float32)",
    }
    start["command"] = f"python -m benchmarks.language.kv {given.part} --documents {given.documents}"
    start["load"] = [round(one, 1) for one in os.getloadavg()]
    start["environment"] = {**environment(1), "transformers": package_version("transformers")}
    for found in PARTS[given.part](given):
        atomic_write(RESULTS / f"language_kv_{given.part}.json", dump_json({**start, **found}))


# -- quality -----------------------------------------------------------------------------------------------------
@torch.no_grad()
def quality(given: argparse.Namespace) -> Any:
    unit = None if given.text == "news" else "article"
    task = LanguageTask(
        LanguageOptions(text=given.text, unit=unit, prefix="bos", window=WINDOW, stride=WINDOW // 2, documents=60)
    )
    model: Any = task.reference()
    texts = [ids for _, ids in task._documents("test") if len(ids) >= WINDOW][: given.documents]
    rows: dict[str, list[list[float]]] = {name: [] for name in ("exact", *FORMS)}
    held = {}
    for number, ids in enumerate(texts):
        window = torch.cat([torch.tensor(task.opening), ids[: WINDOW - 1]])
        right, held["exact"] = read(model, window)
        rows["exact"].append([*nll(right, window), 0.0])
        for name, (bits, residual) in FORMS.items():
            KeyValueCodes(bits, GROUP, residual).attach(model)
            logits, held[name] = read(model, window)
            detach(model)
            kl = float((right.exp() * (right - logits)).sum(1)[1:-1].double().sum())
            rows[name].append([*nll(logits, window), kl])
        print(number, {name: [round(one, 3) for one in row[-1]] for name, row in rows.items()}, flush=True)
        exact = np.array(rows["exact"])
        table = {
            name: summary(np.array(row), exact) | {"bytes_a_token": held[name] / WINDOW} for name, row in rows.items()
        }
        yield {"text": Path(given.text).name, "window": WINDOW, "piece": PIECE, "group": GROUP, "documents": number + 1,
               "sums_by_document": rows, "rows": table}  # fmt: skip


def read(model: Any, window: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return log-probabilities [T,V] of a text read in pieces, and the bytes of the cache."""
    parts, cache = [], None
    for start in range(0, len(window), PIECE):
        output = model(input_ids=window[None, start : start + PIECE], cache=cache, use_cache=True)
        cache = output["cache"]
        parts.append(output.logits[0].log_softmax(-1))
    return torch.cat(parts), held_bytes(cache)


def nll(logits: torch.Tensor, window: torch.Tensor) -> tuple[float, float, float]:
    """Return nll, tokens, and right answers over the tokens after the first of the document."""
    following = window[2:]
    rows = logits[1:-1]
    loss = -rows.gather(1, following[:, None]).double().sum()
    return float(loss), float(len(following)), float((rows.argmax(1) == following).sum())


def summary(rows: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Return perplexity, its ratio to that of the exact cache and KL, each with its interval over documents."""
    draws = np.random.default_rng(0).integers(0, len(rows), (2000, len(rows)))

    def both(function: Callable[[np.ndarray, np.ndarray], float]) -> dict[str, Any]:
        drawn = [function(rows[draw], exact[draw]) for draw in draws]
        return {"value": function(rows, exact), "interval": np.quantile(drawn, (0.025, 0.975)).tolist()}

    return {
        "perplexity": both(lambda mine, _: float(np.exp(mine[:, 0].sum() / mine[:, 1].sum()))),
        "perplexity_ratio": both(lambda mine, ref: float(np.exp((mine[:, 0] - ref[:, 0]).sum() / mine[:, 1].sum()))),
        "kl": both(lambda mine, _: float(mine[:, 3].sum() / mine[:, 1].sum())),
    }


# -- speed -------------------------------------------------------------------------------------------------------
def speed(_: argparse.Namespace) -> Any:
    model: Any = LanguageTask().reference()
    found: dict[str, Any] = {}
    for dtype, kind in ((torch.float32, StraightEngine), (torch.bfloat16, RaggedEngine)):
        engine = kind(model.to(dtype))
        for context in CONTEXTS:
            forms = {"exact": None, **{f"{bits} bits": Form(bits, GROUP, 128) for bits in (8, 4, 2)}}
            caches = {name: filled(form, context, dtype, model) for name, form in forms.items()}
            samples = timed(engine, caches, context)
            name = f"{str(dtype).removeprefix('torch.')}, {context} tokens"
            found[name] = {
                form: {
                    "ratio": float(np.median(ratios := [a / b for a, b in zip(own, samples["exact"], strict=True)])),
                    "interval": median_interval(ratios),
                    "bytes_a_token": held_bytes(caches[form]) / context,
                    "cpu_ms": [round(1e3 * one, 2) for one in own],
                }
                for form, own in samples.items()
            }
            print(name, {form: (round(row["ratio"], 2), round(min(row["cpu_ms"]), 1), round(row["bytes_a_token"]))
                         for form, row in found[name].items()}, flush=True)  # fmt: skip
    yield {"group": GROUP, "residual": 128, "pairs": PAIRS, "rows": found}


def filled(form: Form | None, context: int, dtype: torch.dtype, model: Any) -> Any:
    """Return a cache of `context` made-up tokens."""
    generator = torch.Generator().manual_seed(0)
    cache = SequenceCache(context + 8) if form is None else CodedCache(form, 4)
    for layer in range(model.config.num_hidden_layers):
        states = torch.randn(2, model.config.num_key_value_heads, context, 64, generator=generator).to(dtype)
        cache.write(layer, states[0], states[1])
    cache.length = context
    return cache


def timed(engine: Any, caches: dict[str, Any], context: int) -> dict[str, list[float]]:
    """Return processor seconds of passes with one new token, forms in turns; the first two rounds warm up."""
    samples: dict[str, list[float]] = {name: [] for name in caches}
    for number in range(PAIRS + 2):
        for name in list(caches) if number % 2 else list(caches)[::-1]:
            start = time.process_time()
            engine.run([(caches[name], [5])])
            samples[name].append(time.process_time() - start)
            engine.cut(caches[name], context)
    return {name: found[2:] for name, found in samples.items()}


# -- IntactKV ----------------------------------------------------------------------------------------------------
def intact(given: argparse.Namespace) -> Any:
    steps: dict[str, list[Any]] = {
        "rtn 3 bits": [RTN(bits=3)], "rtn 4 bits": [RTN(bits=4)],
        "rtn 3 bits, behind the chat's beginning": [RTN(bits=3)], "gptq 3 bits": [GPTQ(bits=3, calibration_batches=6)],
    }  # fmt: skip
    table: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for name, recipe in steps.items():
        start = "chat" if "chat" in name else "bos"
        task = LanguageTask(LanguageOptions(prefix=start, documents=given.documents, window=320, stride=160))
        if start not in shared:
            model: Any = task.reference()
            shared[start] = sums(task, model)
            table[f"fp32, {start}"] = summary(shared[start], shared[start])
            table[f"fp32, {start}"]["pivot"] = pivot(model, task)
        made = decoded(Recipe(recipe).apply(model, task, seed=0)[0])
        plain = sums(task, made)
        patched, (record,) = Recipe([IntactKV()]).apply(model, task, seed=0)
        states = patched._modules["prefix_states"]
        states.attach(made)
        with_prefix = sums(task, made)
        table[name] = {**summary(plain, shared[start]), "sums": plain.tolist()}
        table[f"{name}, IntactKV"] = {
            **summary(with_prefix, shared[start]), "to_without": summary(with_prefix, plain)["perplexity_ratio"],
            "prefix_bytes": record.findings["bytes"], "tokens": record.findings["tokens"], "sums": with_prefix.tolist(),
        }  # fmt: skip
        for one, other in pairwise((name, f"{name}, IntactKV")):
            print(
                one, table[one]["perplexity"], other, table[other]["perplexity"], table[other]["to_without"], flush=True
            )
        yield {"text": "news", "window": 320, "documents": given.documents, "rows": table}


def decoded(model: Any) -> Any:
    """Return the model with its few-bit layers as the dense ones that they stand for."""
    for path, module in list(model.named_modules()):
        if isinstance(module, GroupQuantizedLinear):
            dense = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            dense.weight = torch.nn.Parameter(module.dequantise(), requires_grad=False)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, dense)
    return model


def sums(task: LanguageTask, model: Any) -> np.ndarray:
    """Return nll, tokens, right and 0 by document."""
    columns = task.outcomes(model).columns
    return np.stack([columns["nll"], columns["tokens"], columns["right"], 0 * columns["nll"]], 1).astype(float)


@torch.no_grad()
def pivot(model: Any, task: LanguageTask) -> dict[str, float]:
    """Return the largest activation of the first token in the middle of the model, and that of the others."""
    ids = next(iter(task.batches("test")))[0]["input_ids"]
    middle = model(input_ids=ids, output_hidden_states=True).hidden_states[15][0].abs().amax(1)
    return {"first": float(middle[0]), "others": float(middle[len(task.opening) :].max())}


PARTS = {"quality": quality, "speed": speed, "intact": intact}

if __name__ == "__main__":
    main()
