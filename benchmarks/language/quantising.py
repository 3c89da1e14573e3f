"""What rounding a model costs: peak memory beyond the model, and processor time a block.

    python -m benchmarks.language.quantising [--shapes smollm2 llama-1b] [--methods rtn gptq oac]

Random weights in the shape of SmolLM2-135M, or of a 1.1B Llama (2048 wide, 5632 hidden, 32 heads of which 4 for keys,
22 blocks), cut to a few blocks, float32, one thread: time is a block's times their number, and memory beyond the model
does not grow with blocks. Each method runs in a process of its own: the peak is the kernel's high-water mark.
What is allowed: one block in float32, the activations of a block for all calibration tokens (hidden states twice: what
goes in and what comes out; one batch's inside the block), and for the loss one batch's logits.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lessen.environment import environment, package_version
from lessen.files import atomic_write, dump_json
from lessen.method import Context
from lessen.methods.weights.gptq import GPTQ
from lessen.methods.weights.rtn import RTN
from lessen.testing.toys import TableTask

RESULT = Path(__file__).parents[1] / "results" / "language_quantising.json"
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
        "num_hidden_layers": 4, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "llama-1b": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4,
        "num_hidden_layers": 1, "vocab_size": 32000, "tie_word_embeddings": False,
    },
}  # fmt: skip
BLOCKS = {"smollm2": 30, "llama-1b": 22}
BATCHES, TOKENS = 8, 512
METHODS = {
    "rtn": RTN(bits=4, table_bits=None),
    "gptq": GPTQ(bits=4, table_bits=None, calibration_batches=BATCHES),
    "oac": GPTQ(bits=4, table_bits=None, calibration_batches=BATCHES, hessian="output", blocks_a_pass=1),
}
_MMAP_THRESHOLD = -3
"""Option of glibc's `mallopt`: larger pieces go back to the system at once. What it keeps otherwise differs from run to
run (peaks of 55 to 118 MB) and is not the method's."""


class Words(TableTask):
    """Random words, one row of 512 a batch."""

    name = "words"

    def __init__(self, words: int) -> None:
        self.words = words

    def batches(self, split: Any, seed: int = 0) -> Any:
        draw = torch.Generator().manual_seed(0)
        for _ in range(BATCHES):
            ids = torch.randint(self.words, (1, TOKENS), generator=draw)
            yield {"input_ids": ids, "use_cache": False}, ids

    def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
        logits: torch.Tensor = model(**batch[0]).logits
        return logits

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        logits = self.forward(model, batch)
        return nn.functional.cross_entropy(logits[0, :-1], batch[1][0, 1:])


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def measured(shape: str, method: str, sender: Any) -> None:
    import transformers

    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 17)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPES[shape])).eval()
    with torch.no_grad():  # what libraries set up at a first call is not the method's
        model(input_ids=torch.zeros(1, 8, dtype=torch.int64))
        torch.linalg.cholesky(torch.eye(64, dtype=torch.float64))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _status("VmRSS"), time.process_time()
    METHODS[method].apply(model, Words(SHAPES[shape]["vocab_size"]), Context())
    sender.send({"peak_growth": _status("VmHWM") - before, "cpu_s": time.process_time() - start})


def allowed(shape: str, method: str) -> dict[str, int]:
    one = SHAPES[shape]
    wide, hidden, words = one["hidden_size"], one["intermediate_size"], one["vocab_size"]
    head = wide // one["num_attention_heads"]
    block = 4 * (2 * wide * wide + 2 * wide * one["num_key_value_heads"] * head + 3 * wide * hidden)
    inside = 4 * TOKENS * (8 * wide + 4 * hidden)
    return {
        "block": block,
        "activations": 8 * BATCHES * TOKENS * wide + inside,
        "logits": 3 * 4 * TOKENS * words if method == "oac" else 0,
        "curvatures": 4 * (6 * wide * wide + hidden * hidden if method == "oac" else hidden * hidden),
        "solver": (8 + 4) * hidden * hidden + 2 * 4 * wide * hidden,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    asked = parser.parse_args()
    record: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": {}}
    record |= {
        "benchmark": "language_quantising",
        "command": "python -m benchmarks.language.quantising",
        "environment": {**environment(1), "transformers": package_version("transformers")},
    }
    spawn = multiprocessing.get_context("spawn")
    for shape in asked.shapes:
        for method in asked.methods:
            receiver, sender = spawn.Pipe(duplex=False)
            process = spawn.Process(target=measured, args=(shape, method, sender))
            process.start()
            row = receiver.recv()
            process.join()
            held = SHAPES[shape]["num_hidden_layers"]
            row |= {"allowed": allowed(shape, method), "blocks": held, "tokens": BATCHES * TOKENS}
            if method != "oac":  # whose backward passes grow with the blocks behind
                row["whole_model_cpu_s"] = row["cpu_s"] / held * BLOCKS[shape]
            record["rows"][f"{shape} {method}"] = row
            atomic_write(RESULT, dump_json(record))
            sizes = {name: round(value / 1e6) for name, value in row["allowed"].items()}
            whole = f", {row['whole_model_cpu_s'] / 60:.1f} min for all" if "whole_model_cpu_s" in row else ""
            print(f"{shape} {method}: beyond the model {row['peak_growth'] / 1e6:.0f} MB, {sizes} MB")
            print(f"    {row['cpu_s']:.0f} s for {held} blocks{whole}")


if __name__ == "__main__":
    main()
