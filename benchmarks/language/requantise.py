"""Make llama.cpp's own quantised files of a GGUF file, by its shared library through ctypes.

    python -m benchmarks.language.requantise SOURCE.gguf OUT_FOLDER --library FOLDER [--types Q4_0 Q3_K_M]

FOLDER holds `libggml-base.so`, `libggml.so*` and `libllama.so*`, such as `package/bins/linux-x64` of the npm package
`@node-llama-cpp/linux-x64` (measured with 3.22.1); set LD_LIBRARY_PATH to it. SmolLM2's own file is Q4_1: its weights
are decoded to float32 before they are rounded again, as from a float file.
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path
from typing import Any

TYPES = {"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q4_K_S": 14, "Q4_K_M": 15}


class Settings(ctypes.Structure):
    """The head of `llama_model_quantize_params`, and room for what follows."""

    _fields_ = [
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int32),
        ("output_tensor_type", ctypes.c_int32),
        ("token_embedding_type", ctypes.c_int32),
        ("allow_requantize", ctypes.c_bool),
        ("rest", ctypes.c_char * 251),
    ]


def library(folder: Path) -> Any:
    for pattern in ("libggml-base.so*", "libggml.*so*"):
        for path in sorted(folder.glob(pattern))[:1]:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    found = ctypes.CDLL(str(next(iter(sorted(folder.glob("libllama.*so*"))))))
    found.llama_model_quantize_default_params.restype = Settings
    found.llama_backend_init()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--types", nargs="*", default=["Q4_0", "Q3_K_M"], choices=list(TYPES))
    asked = parser.parse_args()
    llama = library(asked.library)
    for name in asked.types:
        settings = llama.llama_model_quantize_default_params()
        settings.nthread, settings.ftype, settings.allow_requantize = 1, TYPES[name], True
        target = asked.out / f"{name}.gguf"
        if llama.llama_model_quantize(str(asked.source).encode(), str(target).encode(), ctypes.byref(settings)):
            raise SystemExit(f"llama.cpp could not write {target}")
        print(name, target.stat().st_size)


if __name__ == "__main__":
    main()
