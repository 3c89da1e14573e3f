"""Does reading a prompt with a picture get faster by the multiply-adds that left-out tokens save?

    python -m benchmarks.tokens.visual [--rounds 7] [--width 512 --layers 8]

Hugging Face's LLaVA with random weights (time does not depend on them), 576 visual tokens and 64 words, one thread, a
vision tower too small to matter. All variants alternate in one process, in turned order every other round; the CPU time
of that thread is compared, and the load of the machine, whose caches and memory others share, is kept beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lessen.architectures.visual_host import find_visual_host
from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.tokens.visual import Stage, VisualPruning, pool_pictures, prune_visual_tokens
from lessen.tokens.visual.macs import prefill_macs, shapes

RESULTS = Path(__file__).parents[1] / "results" / "tokens_visual.json"
SIDE, WORDS, PLACEHOLDER = 24, 64, 999
FIRST = 2
"""Layers that see all tokens where there is one stage."""


def build(width: int, layers: int) -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=336, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, vocab_size=1000,
        intermediate_size=11 * width // 4, max_position_embeddings=2048,
    )  # fmt: skip
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=PLACEHOLDER)
    return LlavaForConditionalGeneration(config).eval()


def prunings(layers: int) -> dict[str, VisualPruning]:
    """Return every way: a quarter kept from layer 2 on; FEATHER's two stages at a quarter and half of the depth."""
    quarter = (Stage(FIRST, 0.25),)
    deep = (Stage(layers // 4, 0.3, stride=3), Stage(layers // 2, 0.09))
    return {
        "fastv": VisualPruning(quarter),
        "feather": VisualPruning(deep, rope=False),
        "determinant": VisualPruning(quarter, "determinant", rope=False),
        "random": VisualPruning(quarter, "random"),
        "uniform": VisualPruning(quarter, "uniform"),
    }


def prompt(batch: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(3, 900, (batch, WORDS), generator=draw)
    marks = torch.full((batch, SIDE**2), PLACEHOLDER)
    ids = torch.cat([words[:, :32], marks, words[:, 32:]], 1)
    pixels = torch.randn(batch, 3, 336, 336, generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


class Variant:
    """One way to read the prompt: what it patches, what it is given."""

    def __init__(self, name: str, model: nn.Module, inputs: dict[str, Any], layers: int) -> None:
        self.name, self.model, self.inputs, self.layers = name, model, inputs, layers

    def __enter__(self) -> dict[str, Any]:
        self.patch: Any = None
        if self.name == "deco":
            self.patch = pool_pictures(self.model, (SIDE // 2, SIDE // 2))
            return self.patch.fit(self.inputs)
        if self.name != "whole":
            self.patch = prune_visual_tokens(self.model, prunings(self.layers)[self.name])
        return self.inputs

    def __exit__(self, *_: object) -> None:
        if self.patch is not None:
            self.patch.remove()


def run(variant: Variant) -> dict[str, Any]:
    """Read the prompt once; return times in ms, tokens of each layer and bytes of its keys and values (float32)."""
    with variant as inputs:
        cpu, wall = time.thread_time(), time.perf_counter()
        done = variant.model(**inputs, use_cache=True, logits_to_keep=1)
        times = [1e3 * (time.thread_time() - cpu), 1e3 * (time.perf_counter() - wall)]
    cache = next(done[key] for key in ("cache", "past_key_values") if key in done)
    tokens = [layer.keys.shape[2] for layer in cache.layers]
    return {"times": times, "tokens": tokens, "bytes": [(x.keys.nbytes + x.values.nbytes) for x in cache.layers]}


def scored(name: str, tokens: list[int], layers: int) -> list[int]:
    if name in ("fastv", "determinant"):
        return [SIDE**2]
    return [SIDE**2, tokens[layers // 2 - 1] - WORDS] if name == "feather" else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 7), ("width", 512), ("layers", 8), ("batch", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, inputs = build(given.width, given.layers), prompt(given.batch)
    names = ["whole", "deco", *prunings(given.layers)]
    found: dict[str, dict[str, Any]] = {}
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    load = os.getloadavg()
    with torch.inference_mode():
        for number in range(-1, given.rounds):
            for name in names if number % 2 else names[::-1]:
                found[name] = run(Variant(name, model, inputs, given.layers))
                if number >= 0:
                    times[name].append(found[name]["times"])
    shape, rows = shapes(find_visual_host(model)), []
    whole = prefill_macs(shape, found["whole"]["tokens"])
    for name in names:
        tokens = found[name]["tokens"]
        ratio = whole / prefill_macs(shape, tokens, scored(name, tokens, given.layers))
        pairs = zip(times["whole"], times[name], strict=True)
        median = statistics.median(before / cpu for (before, _), (cpu, _) in pairs)
        least = min(cpu for cpu, _ in times["whole"]) / min(cpu for cpu, _ in times[name])
        rows.append(
            {
                "variant": name, "tokens": tokens, "mac_ratio": ratio,
                "speed_up_fastest": least, "speed_up_median": median,
                "kv_bytes": sum(found[name]["bytes"]), "ms_cpu_wall": times[name],
            }
        )  # fmt: skip
        kept = sum(found[name]["bytes"]) / sum(found["whole"]["bytes"])
        text = f"{name:12} {ratio:6.2f}x MACs  {least:6.2f}x fastest {median:6.2f}x median"
        print(f"{text}  share {median / ratio:5.2f}  KV {kept:5.1%}  tokens {tokens}", flush=True)
    done = {
        "command": " ".join(["python", "-m", "benchmarks.tokens.visual", *sys.argv[1:]]),
        "settings": vars(given),
        "threads": 1,
        "load": load,
        "env": environment(),
        "transformers": __import__("transformers").__version__,
        "dtype": "float32",
        "rows": rows,
    }
    atomic_write(RESULTS, dump_json(done))


if __name__ == "__main__":
    main()
