"""One set of codes in four containers: how many weights differ, and what each runtime says.

    python -m benchmarks.language.containers [--tokens 256] [--new 32] [--weights-only]

SmolLM2-135M-Instruct, all linears of its blocks at 4 bits in groups of 64, symmetric and with whole zero points, the
embedding, which is also the head, at 8 bits. Each file is written by `lessen export` and read by other code: GGUF
by the `gguf` package, the ONNX file by `onnx`, the folder by the `compressed-tensors` package (or, where it is not
installed, by our own reader, and the result says so). Then logits on news text, token by token: onnxruntime at accuracy
level 0 and 4, llama.cpp and transformers with compressed-tensors where they are installed, beside our float32 ones.

llama.cpp: see tests/helpers/llama_runtime.py. The script runs in an environment with those packages beside lessen.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from lessen.architectures.loading import SMOLLM2, load_host, load_model
from lessen.environment import environment, package_version
from lessen.export.codes import coded
from lessen.export.compressed import Form, unpack_layer
from lessen.export.gguf.hosts import swap
from lessen.export.gguf.write import export_gguf
from lessen.export.hf import export_hf
from lessen.export.matmul_nbits import Blocks, values_of
from lessen.export.onnx_decoder import OnnxDecoder, export_decoder
from lessen.files import atomic_write, dump_json, parse_json
from lessen.recipe import Recipe
from lessen.tasks.language.perplexity import LanguageTask

RESULT = Path(__file__).parents[1] / "results" / "language_containers.json"
STEPS = {
    "symmetric": {"rtn": {"bits": 4, "group": 64, "symmetric": True}},
    "whole zero points": {"rtn": {"bits": 4, "group": 64, "zeros": "whole"}},
}
PROMPTS = ("The capital of France is", "Water boils at", "def add(a, b):", "In 1969,")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--weights-only", action="store_true", help="keep what the result file says of logits")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    task = LanguageTask()
    original, words = load_model(SMOLLM2)
    names = ("gguf", "onnxruntime", "compressed-tensors", "transformers")
    record = {
        "command": " ".join(["python -m benchmarks.language.containers", *sys.argv[1:]]),
        "model": SMOLLM2,
        "recipes": {
            name: made(original, words, task, step, chosen, name == "symmetric" and not chosen.weights_only)
            for name, step in STEPS.items()
        },
        "env": {**environment(1), **{name: package_version(name) for name in names}},
    }
    if chosen.weights_only:
        kept = parse_json(RESULT.read_bytes(), str(RESULT))["recipes"]
        for name, recipe in record["recipes"].items():
            recipe.update({key: kept[name][key] for key in ("said",) if key in kept[name]})
            recipe["bytes"] = {**kept[name]["bytes"], **recipe["bytes"]}
    atomic_write(RESULT, dump_json(record))
    print(dump_json(record))


def made(original: Any, words: Any, task: LanguageTask, step: Any, chosen: Any, speaks: bool) -> dict[str, Any]:
    """Return what one recipe gives in four containers.

    Args:
        speaks: whether logits are compared too. transformers 5.24 with compressed-tensors 0.20 loads no folder with
            zero points, not even one that compressed-tensors wrote itself, so that is done for the symmetric recipe.
    """
    model: Any = Recipe.parse({"steps": [step]}, "step").apply(original, task)[0]
    ours = {path: held.values() for path, module in model.named_modules() if (held := coded(module)) is not None}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_gguf(model, words, folder / "m.gguf")
        export_decoder(model, folder / "m.onnx")
        export_hf(model, words, folder / "packed")
        found = {
            "step": step,
            "weights": sum(value.numel() for value in ours.values()),
            "layers": len(ours),
            "weights that differ": differing(ours, model, folder),
        }
        if speaks:
            export_decoder(model, folder / "m4.onnx", accuracy_level=4)
            export_hf(model, words, folder / "dense", dense=True)
            found["said"] = said(folder, words, task, chosen.tokens, chosen.new)
        found["bytes"] = {one.name: _bytes(one) for one in sorted(folder.iterdir())}
    return found


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(one.stat().st_size for one in path.glob("*.safetensors"))


# -- weights ---------------------------------------------------------------------------------------------------------
def differing(ours: dict[str, Tensor], model: Any, folder: Path) -> dict[str, Any]:
    """Return how many weights of each container are not ours to the bit."""
    readers = {"gguf": from_gguf(model, folder / "m.gguf"), "onnx": from_onnx(folder / "m.onnx")}
    found: dict[str, Any] = {}
    packed, reader = from_folder(folder / "packed")
    readers["compressed-tensors"] = packed
    for name, values in readers.items():
        wrong = sum(int((values[path] != value).sum()) for path, value in ours.items() if path in values)
        found[name] = {
            "differ": wrong,
            "compared": sum(value.numel() for path, value in ours.items() if path in values),
        }
    found["compressed-tensors"]["reader"] = reader
    return found


def from_gguf(model: Any, path: Path) -> dict[str, Tensor]:
    import gguf

    held = {
        one.name: torch.from_numpy(gguf.dequantize(one.data, one.tensor_type).copy())
        for one in gguf.GGUFReader(path).tensors
    }
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, len(model.model.layers))
    found = {}
    for name, module in model.named_modules():
        target = names.get_name(f"{name}.weight", try_suffixes=(".weight",))
        if target not in held or coded(module) is None:
            continue
        value = held[target].float()
        heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
        count = heads.get(name.rpartition(".")[2])
        found[name] = value if count is None else value[torch.argsort(swap(len(value), count))]
    return found


def from_onnx(path: Path) -> dict[str, Tensor]:
    import onnx

    proto = onnx.load(path)
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        known = {one.name: one.i for one in node.attribute}
        parts = [arrays[name].copy() for name in node.input[1:]]
        zeros = parts[2] if len(parts) > 2 else None
        blocks = Blocks(parts[0], parts[1], zeros, known["bits"], known["block_size"], known["K"], known["N"])
        name = node.input[1].removesuffix(".codes")
        found[name] = values_of(blocks)
    return found


def from_folder(path: Path) -> tuple[dict[str, Tensor], str]:
    state = load_file(path / "model.safetensors")
    layers = sorted({name.rpartition(".")[0] for name in state if name.endswith("weight_packed")})
    parts = {
        one: {name.rpartition(".")[2]: value for name, value in state.items() if name.startswith(f"{one}.")}
        for one in layers
    }
    try:
        from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    except ImportError:
        form = Form(4, 64, not any("weight_zero_point" in held for held in parts.values()))
        return {one: unpack_layer(form, held) for one, held in parts.items()}, "lessen"
    symmetric = not any("weight_zero_point" in held for held in parts.values())
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=64)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return {
        one: PackedQuantizationCompressor.decompress(held, scheme)["weight"].float() for one, held in parts.items()
    }, "compressed-tensors"


# -- what is said ----------------------------------------------------------------------------------------------------
def said(folder: Path, words: Any, task: LanguageTask, tokens: int, new: int) -> dict[str, Any]:
    """Compare logits on news text and greedy texts with those of the dense float32 folder."""
    model = load_host(str(folder / "dense"))
    ids = torch.cat([torch.tensor(words(text)["input_ids"]) for text in task.texts("test")])[:tokens]
    prompts = [words(text)["input_ids"] for text in PROMPTS]
    with torch.no_grad():
        wanted = model(input_ids=ids[None]).logits[0].numpy()
        texts = [greedy(model, prompt, new) for prompt in prompts]
    found: dict[str, Any] = {"tokens": len(ids), "new": new}
    for name, file in (("onnxruntime, level 0", "m.onnx"), ("onnxruntime, level 4", "m4.onnx")):
        decoder = OnnxDecoder(folder / file)
        logits = decoder.step(ids[None].numpy(), decoder.empty(1))[0][0]
        found[name] = compared(wanted, logits, texts, [decoder.greedy(prompt, new) for prompt in prompts])
    found["llama.cpp"] = llama(folder / "m.gguf", ids.tolist(), prompts, wanted, texts, new)
    found["transformers with compressed-tensors"] = packed(folder / "packed", ids, prompts, wanted, texts, new)
    return found


def greedy(model: Any, prompt: list[int], new: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, eos_token_id=None
    )
    emitted: list[int] = out[0, len(prompt) :].tolist()
    return emitted


def llama(
    path: Path, ids: list[int], prompts: list[list[int]], wanted: np.ndarray, texts: list[list[int]], new: int
) -> Any:
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))
    from llama_runtime import LlamaCpp, missing

    if missing() is not None:
        return missing()
    model = LlamaCpp(path, context=1024)
    return compared(wanted, model.logits(ids), texts, [model.greedy(prompt, new) for prompt in prompts])


def packed(
    path: Path, ids: Tensor, prompts: list[list[int]], wanted: np.ndarray, texts: list[list[int]], new: int
) -> Any:
    try:
        import compressed_tensors  # noqa: F401
        import transformers
    except ImportError as error:
        return f"not installed: {error.name}"
    model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0].float().numpy()
        return compared(wanted, logits, texts, [greedy(model, prompt, new) for prompt in prompts])


def compared(wanted: np.ndarray, found: np.ndarray, texts: list[list[int]], others: list[list[int]]) -> dict[str, Any]:
    apart = np.abs(found - wanted).max()
    flipped = int((found.argmax(1) != wanted.argmax(1)).sum())
    margins = np.sort(wanted, axis=1)
    margin = (margins[:, -1] - margins[:, -2])[found.argmax(1) != wanted.argmax(1)]
    return {
        "largest difference of a logit": float(apart),
        "as a share of the largest": float(apart / np.abs(wanted).max()),
        "tokens whose arg-max differs": flipped,
        "widest margin of those": float(margin.max()) if flipped else 0.0,
        "equal greedy texts": sum(one == other for one, other in zip(texts, others, strict=True)),
        "greedy tokens before they part": [_common(one, other) for one, other in zip(texts, others, strict=True)],
    }


def _common(one: list[int], other: list[int]) -> int:
    return next((place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))


if __name__ == "__main__":
    main()
