"""Decode of a 1.1B-parameter Llama shape with random codes, against what memory could deliver.

    python -m benchmarks.language.bandwidth --bits 4 --threads 1 --llama FOLDER

Weights of 22 layers (width 2048, 32 heads over 4 key heads, 5632 inner, 32,000 words) in groups of 64, embedding and
head at 8 bits. In turns: one decoded token, and a read of as many bytes by torch (`sum` of int64, which streams). The
ratio of their minima is the share of the reading speed that decode reaches. With `--llama` (see
`benchmarks.language.llama_npm`) llama.cpp takes its turn on the same shape in Q4_0, embedding and head Q8_0.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.guides import placed
from benchmarks.language.llama_npm import Library, Model
from benchmarks.language.llama_shape import write
from lessen.decoding.compiled.engine import CompiledEngine
from lessen.environment import environment
from lessen.files import atomic_write, dump_json
from lessen.methods.sites import Site, replace
from lessen.stored.linears.group_quantized import GroupQuantizedLinear

RESULT = Path(__file__).parents[1] / "results" / "language_bandwidth.json"


def shaped(bits: int) -> Any:
    """Return the model: dense parts of one layer at a time, so that it fits a small machine."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=2048, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4, intermediate_size=5632,
        vocab_size=32000, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval()
    for path, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            wide = 8 if path == "lm_head" else bits
            made = GroupQuantizedLinear(
                layer.in_features, layer.out_features, wide, 64, symmetric=wide == 8, bias=False, activations="int8"
            )
            made.codes.random_()
            made.scales.fill_(0.02 / 2 ** (wide - 1))
            if made.minimums is not None:
                made.minimums.fill_(-0.02)
            model = replace(model, Site((path,), layer), made)
    model.model.embed_tokens = torch.nn.Embedding(32000, 2048).bfloat16().float()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = torch.nn.Parameter(torch.ones(parameter.shape))
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


def peer_of(given: argparse.Namespace, config: Any) -> tuple[Any, str | None]:
    """Return llama.cpp on a file of this shape, and its build; None where it was not asked for."""
    if given.llama is None:
        return None, None
    library = Library(given.llama)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "shape.gguf", config)
        return Model(library, Path(folder) / "shape.gguf", given.threads, 256), library.build


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--llama", type=Path, help="folder of llama.cpp's shared objects")
    parser.add_argument("--machine", help="name of a further machine, whose figures stand beside the first one's")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = shaped(given.bits)
    engine = CompiledEngine(model)
    panels = sum(operand.bytes for parts in engine.operands for operand in parts.values()) + engine.head.bytes
    cache = engine.new_cache(256)
    engine.run([(cache, list(range(16)))], last_only=True)
    plain = torch.ones(panels // 8, dtype=torch.int64)
    calls = {"decode": lambda: engine.run([(cache, [7])]), "read": plain.sum}
    peer, build = peer_of(given, model.config)
    if peer is not None:
        peer.run(list(range(16)))
        calls["llama.cpp Q4_0"] = lambda: peer.run([7])
    best: dict[str, dict[str, float]] = {name: {} for name in calls}
    for _ in range(given.rounds):
        for name, call in calls.items():
            wall, own = time.perf_counter(), time.process_time()
            call()
            wall, own = time.perf_counter() - wall, time.process_time() - own
            kept = best[name]
            kept["wall"], kept["cpu"] = min(kept.get("wall", wall), wall), min(kept.get("cpu", own), own)
            engine.cut(cache, 16)
            if peer is not None:
                peer.cut(16)
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    record[placed(f"{given.bits} bits, {given.threads} threads", given.machine)] = {
        "environment": environment(), "load": os.getloadavg()[0], "bytes": panels, "seconds": best,
        "llama.cpp build": build,
        "share": {clock: best["read"][clock] / best["decode"][clock] for clock in ("wall", "cpu")},
        "command": f"python -m benchmarks.language.bandwidth --bits {given.bits} --threads {given.threads}",
    }  # fmt: skip
    atomic_write(RESULT, dump_json(record))
    print(json.dumps(record, indent=1)[-700:])


if __name__ == "__main__":
    main()
