"""SmolLM2 with 880 of 1,536 units in every block, opened unmodified by transformers, ONNX Runtime and llama.cpp.

    PYTHONPATH=tests/helpers python -m benchmarks.pruning.leaves

The model is that of the row `first-order even, refitted on more` of `benchmarks.pruning.frontier`, made anew: some
seven minutes of one core. Each runtime's logits after a sentence are held against ours; llama.cpp is skipped, with its
reason, where `tests/helpers/llama_runtime.py` has none.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pruning.frontier import RESULTS, smollm2, task_of
from lessen.environment import environment
from lessen.export.gguf.write import export_gguf
from lessen.export.hf import export_hf
from lessen.export.onnx_decoder import OnnxDecoder, export_decoder
from lessen.files import atomic_write, dump_json
from lessen.recipe import Recipe

STEPS = smollm2()["first-order even, refitted on more"]
TEXT = "The largest harbour of the country lies at the mouth of the river."


def apart(found: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """Return the largest difference as a share of the largest logit, and the share of equal first tokens."""
    return {"apart": round(float(np.abs(found - wanted).max() / np.abs(wanted).max()), 6),
            "same token": round(float((found.argmax(-1) == wanted.argmax(-1)).mean()), 4)}  # fmt: skip


def main() -> None:
    import transformers

    torch.set_num_threads(1)
    task = task_of("smollm2", None)
    whole = task.reference()
    made, _ = Recipe.parse({"name": "even", "steps": STEPS}).apply(whole, task)
    words, rows = task.tokenizer, {}
    ids = torch.tensor([words(TEXT)["input_ids"]])
    with torch.no_grad(), tempfile.TemporaryDirectory() as place:
        folder, wanted = Path(place), made(ids).logits[0].float().numpy()
        written = export_hf(made, words, folder / "hf", dtype="float32")
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf").eval()
        rows["transformers"] = {"bytes": written.bytes, **apart(plain(ids).logits[0].float().numpy(), wanted)}
        del plain
        export_decoder(made, folder / "m.onnx")
        decoder = OnnxDecoder(folder / "m.onnx")
        feeds = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy(), **decoder.empty(1)}
        rows["onnx runtime"] = apart(decoder.session.run(None, feeds)[0][0], wanted)
        del decoder
        export_gguf(made, words, folder / "m.gguf")
        rows["gguf bytes"] = (folder / "m.gguf").stat().st_size
        from llama_runtime import LlamaCpp, missing

        why = missing()
        rows["llama.cpp"] = why or apart(LlamaCpp(folder / "m.gguf").logits(ids[0].tolist()), wanted)
    for name, row in rows.items():
        print(name, row)
    atomic_write(RESULTS / "pruning_leaves.json", dump_json({
        "benchmark": "pruning_leaves", "command": "python -m benchmarks.pruning.leaves", "steps": STEPS,
        "environment": environment(1), "parameters": [sum(p.numel() for p in m.parameters()) for m in (whole, made)],
        "rows": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
