"""KL to the original at equal bytes: lessen's rounding beside llama.cpp's forms with an importance matrix.

    python -m benchmarks.language.importance --library FOLDER [--rows GLOB] [--source SmolLM2.gguf] [--seconds 300]

SmolLM2-135M-Instruct, float32, 24 news items, one thread. The importance matrix is what llama.cpp's own tool sums: the
mean of squares of each input of a layer, here over lessen's calibration text (24 windows of 192 tokens), so that both
sides see the same. llama.cpp's few-bit forms take rows of 256, and rows of this model have 576 and 1536:

part    blocks 10 to 15 alone, the rest untouched. Rows of 576 are handed to llama.cpp's `ggml_quantize_chunk` four at a
        time (2304 = 9 x 256), which its own tool does not do: so its forms have the bits they are made for.
file    `--files OUT --source SmolLM2.gguf` writes whole files by `llama_model_quantize`, which takes wider forms where
        rows do not fit; `benchmarks.language.fewbits --gguf OUT/*.gguf` judges them.

FOLDER holds the shared objects of npm's `@node-llama-cpp/linux-x64`, see `llama_npm`. Weights are decoded to float32.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lessen
from benchmarks.guides import RESULTS
from benchmarks.language.cross import Kept, add, bits_of, densely
from benchmarks.language.cross_tables import figures, ratio
from benchmarks.language.fewbits import PART
from benchmarks.language.requantise import TYPES
from lessen.environment import environment, package_version
from lessen.methods.calibration import watching
from lessen.methods.sites import state_bytes
from lessen.recipe import Recipe

RESULT = RESULTS / "language_importance.json"
FILE_TYPES = {**TYPES, "IQ3_M": 27}
BEST: dict[str, Any] = {"calibration_batches": 6, "hessian": "tokens", "ranges": "search", "refit": 2}
PEERS = ("IQ3_S", "Q3_K", "IQ3_XXS", "Q2_K", "IQ2_S")
FILES = ("Q3_K_M", "Q2_K", "IQ3_M")


class Importance(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


class Settings(ctypes.Structure):
    """`llama_model_quantize_params` of llama.cpp 0.5.0, and room for what follows."""

    _fields_ = [
        ("nthread", ctypes.c_int32), ("ftype", ctypes.c_int32), ("output_tensor_type", ctypes.c_int32),
        ("token_embedding_type", ctypes.c_int32), ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool), ("only_copy", ctypes.c_bool), ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool), ("dry_run", ctypes.c_bool), ("imatrix", ctypes.POINTER(Importance)),
        ("rest", ctypes.c_char * 256),
    ]  # fmt: skip


def ours() -> dict[str, dict[str, Any]]:
    """Return the steps by row."""
    part = {"only": PART, "table_bits": None, "blocks_a_pass": 6, **BEST}
    return {
        "part lessen 3.33": {"gptq": {"bits": 3, "group": 96, **part}},
        "part lessen 2.5": {"gptq": {"bits": 2, "group": 64, **part}},
        "part lessen 3.5": {"gptq": {"bits": 3, "group": 64, **part}},
        "part lessen 3.43": {"gptq": {"bits": 3, "group": 32, "scale_bits": 6, **part}},
        "part lessen 2.43": {"gptq": {"bits": 2, "group": 32, "scale_bits": 6, **part}},
        "part lessen 2.55": {"gptq": {"bits": 2, "group": 16, "scale_bits": 4, **part}},
        "part lessen 2.56": {"linear-mixed-bits": mixed(2.56)},
        "part lessen 2.55, three times the text": {
            "gptq": {"bits": 2, "group": 16, "scale_bits": 4, **part, "calibration_batches": 18}
        },
        "part lessen 2.55, trained": {
            "efficient-qat": {"bits": 2, "group": 16, "scale_bits": 4, **part, "steps": 48, "learning_rate": 2e-3}
        },
        "part lessen 3.05": {"gptq": {"bits": 3, "group": None, **part}},
        "part lessen 3.33, three times the text": {"gptq": {"bits": 3, "group": 96, **part, "calibration_batches": 18}},
        "part lessen 2.5, three times the text": {"gptq": {"bits": 2, "group": 64, **part, "calibration_batches": 18}},
    }


def mixed(average: float) -> dict[str, Any]:
    """Return layers of 2, 3 or 4 bits by measured harm, rounded as the others are."""
    best = {name: BEST[name] for name in ("hessian", "ranges", "refit", "calibration_batches")}
    return {
        "average": average, "widths": [2, 3, 4], "group": 32, "scale_bits": 6, "rounding": "gptq", "only": PART,
        "table_bits": None, **best,
    }  # fmt: skip


def importance(model: nn.Module, task: Any, batches: int) -> dict[str, Tensor]:
    """Return the mean square of each input of each linear layer, float32 [in], by path."""
    found = {path: torch.zeros(m.in_features) for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    seen = dict.fromkeys(found, 0)

    def hook_of(path: str) -> Any:
        def hook(_module: nn.Module, arguments: Any, _keywords: Any) -> None:
            rows = arguments[0].reshape(-1, arguments[0].shape[-1])
            found[path] += rows.square().sum(0)
            seen[path] += len(rows)

        return hook

    hooks = [(m, hook_of(path)) for path, m in model.named_modules() if path in found]
    with watching(hooks), torch.no_grad():
        for number, batch in enumerate(task.batches("train")):
            if number == batches:
                break
            task.forward(model, batch)
    return {path: total / max(1, seen[path]) for path, total in found.items()}


def chunked(base: Any, weight: Tensor, kind: str, weights_of_inputs: Tensor) -> tuple[Tensor, int]:
    """Return a weight [out, in] as llama.cpp rounds it, and the bytes that takes; rows that do not fit go by four."""
    import gguf

    taken = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[taken]
    times = 1 if weight.shape[1] % block == 0 else 4
    rows = np.ascontiguousarray(weight.numpy().reshape(len(weight) // times, -1))
    known = np.ascontiguousarray(np.tile(weights_of_inputs.numpy(), times).astype(np.float32))
    made = np.zeros((len(rows), rows.shape[1] // block * size), np.uint8)
    base.ggml_quantize_init(int(taken))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    written = base.ggml_quantize_chunk(
        int(taken), pointer(rows.ctypes.data), pointer(made.ctypes.data), count(0), count(len(rows)),
        count(rows.shape[1]), pointer(known.ctypes.data),
    )  # fmt: skip
    if written != made.nbytes:
        raise SystemExit(f"llama.cpp wrote {written} bytes of {kind}, not {made.nbytes}")
    return torch.from_numpy(gguf.dequantize(made, taken).copy()).reshape(weight.shape).float(), made.nbytes


def with_peer(original: Any, task: Any, base: Any, kind: str, known: dict[str, Tensor]) -> tuple[nn.Module, float]:
    """Return the model with blocks 10 to 15 in one of llama.cpp's forms, and their bits for each weight."""
    model, _ = Recipe([]).apply(original, task)
    taken = weights = 0
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and fnmatch.fnmatch(path, f"{PART}.*"):
            layer.weight.data, size = chunked(base, layer.weight.detach(), kind, known[path])
            taken, weights = taken + size, weights + layer.weight.numel()
    return model, 8 * taken / weights


def write_file(llama: Any, source: Path, target: Path, kind: str, known: dict[str, Tensor]) -> None:
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30)
    found = {names.get_name(f"{path}.weight", try_suffixes=(".weight",)): value for path, value in known.items()}
    held = {name: np.ascontiguousarray(value.numpy(), np.float32) for name, value in found.items() if name}
    table = (Importance * (len(held) + 1))()
    for place, (name, value) in zip(table, held.items(), strict=False):
        place.name, place.size = name.encode(), len(value)
        place.data = value.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    given = llama.llama_model_quantize_default_params()
    given.nthread, given.ftype, given.allow_requantize, given.imatrix = 1, FILE_TYPES[kind], True, table
    if llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(given)):
        raise SystemExit(f"llama.cpp could not write {target}")


def opened(folder: Path) -> tuple[Any, Any]:
    base = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(next(folder.glob("libggml.*.so"))), ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(next(folder.glob("libllama.v*.so"))))
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    llama.llama_model_quantize_default_params.restype = Settings
    llama.llama_backend_init()
    return base, llama


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--files", type=Path, help="write whole files with the importance matrix here, and stop")
    parser.add_argument("--source", type=Path, help="the model's own GGUF file, for `--files`")
    parser.add_argument("--rows", default="*")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1e9, help="of processor time, after which no row is begun")
    parser.add_argument("--keep", type=Path, default=Path("out"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.keep.mkdir(parents=True, exist_ok=True)
    task = lessen.get_task({"name": "language-smollm2", "window": 192, "stride": 96})
    judged = lessen.get_task({"name": "language-smollm2", "documents": asked.documents})
    if asked.files is not None:
        asked.files.mkdir(parents=True, exist_ok=True)
        known, (_, llama) = importance(task.reference(), task, 6), opened(asked.library)
        for kind in FILES:
            write_file(llama, asked.source, asked.files / f"{kind} imatrix.gguf", kind, known)
        return
    record: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {
        "benchmark": "language_importance", "command": "python -m benchmarks.language.importance", "rows": {},
        "environment": {**environment(1), "transformers": package_version("transformers"), "llama.cpp": "0.5.0"},
        "judged": judged.describe(), "calibrated": task.describe(),
    }  # fmt: skip
    names = [f"part llama.cpp {one}" for one in PEERS] + list(ours())
    todo = [one for one in names if fnmatch.fnmatch(one, asked.rows) and one not in record["rows"]]
    original = task.reference()
    judge = Kept(judged, original, asked.keep)
    known = importance(original, task, 6) if any("llama.cpp" in one for one in todo) else {}
    base, _ = opened(asked.library)
    for name in todo:
        if time.process_time() > asked.seconds:
            break
        start, kind = time.process_time(), name.rpartition(" ")[2]
        if name.startswith("part llama.cpp"):
            model, bits = with_peer(original, task, base, kind, known)
            row: dict[str, Any] = {"bits": round(bits, 4), "documents": {"news": judge(model)}}
        else:
            made, _ = Recipe.parse({"name": "row", "steps": [ours()[name]]}).apply(original, task, seed=0)
            row = {"step": ours()[name], "bits": bits_of(made, original), "state_bytes": state_bytes(made)}
            row["documents"] = {"news": judge(densely(made))}
        row["cpu_s"] = round(time.process_time() - start, 1)
        add(record, RESULT, name, row)
    table(record)


def table(record: dict[str, Any]) -> None:
    """Print every row, and for each of ours the KL as a share of each peer's of no fewer bits."""
    for name, row in record["rows"].items():
        print(f"{name:42} {row['bits']:.3f} bits", figures(row["documents"]["news"]))
        for other, peers in record["rows"].items() if " lessen " in name else ():
            if "llama.cpp" in other and row["bits"] <= peers["bits"]:
                found = ratio(row["documents"]["news"], peers["documents"]["news"], "kl")
                print(f"    KL {found[0]:.2f} x {other} [{found[1]:.2f}, {found[2]:.2f}]")


if __name__ == "__main__":
    main()
