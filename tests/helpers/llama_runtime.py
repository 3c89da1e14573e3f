"""llama.cpp through the wheel `llama-cpp-py-sync` 0.11739, which is no dependency of ours.

    pip install --no-deps llama-cpp-py-sync==0.11739; pip install cffi

The wheel's library needs a young glibc. Where there is none, LLAMA_CPP_FOLDER names a folder with another build, such as
`package/bins/linux-x64` of the npm package @node-llama-cpp/linux-x64 3.22.1, whose calls are the same.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import numpy as np


@cache
def bindings():
    """The wheel's class, over its own library or the one in LLAMA_CPP_FOLDER. Raises ImportError, OSError."""
    from llama_cpp_py_sync import Llama, _cffi_bindings

    folder = os.environ.get("LLAMA_CPP_FOLDER")
    if folder is None:
        _cffi_bindings.get_lib()
        return Llama
    for pattern in ("libggml-base.so*", "libggml.*so*"):
        loaded = ctypes.CDLL(str(next(Path(folder).glob(pattern))), mode=ctypes.RTLD_GLOBAL)
    loaded.ggml_backend_load_all_from_path(ctypes.c_char_p(folder.encode()))
    library = next(one for one in Path(folder).glob("libllama.*so*"))
    _cffi_bindings._lib = _cffi_bindings.get_ffi().dlopen(str(library))
    return Llama


def missing() -> str | None:
    """Why llama.cpp cannot be had here, or None."""
    try:
        bindings()
    except (ImportError, OSError, RuntimeError, StopIteration) as error:
        return f"no llama.cpp ({str(error)[:80]}); see tests/helpers/llama_runtime.py"
    return None


class LlamaCpp:
    """A GGUF file opened by llama.cpp, one thread: token ids of a text, and logits after each token of a sequence."""

    def __init__(self, path: Path, context: int = 128) -> None:
        self._model = bindings()(str(path), n_ctx=context, n_threads=1, n_threads_batch=1, verbose=False)

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, without those that are put around it."""
        return list(self._model.tokenize(text, add_special=False, parse_special=True))

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits float32 [tokens, vocabulary], each after one more token."""
        model, rows = self._model, []
        model._clear_context_state()
        for place, token in enumerate(ids):
            model._eval_tokens([token], place)
            pointer = model._lib.llama_get_logits_ith(model._ctx, -1)
            rows.append(np.frombuffer(model._ffi.buffer(pointer, 4 * model.n_vocab), np.float32).copy())
        return np.stack(rows)

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The tokens that follow greedily."""
        model, emitted = self._model, []
        model._clear_context_state()
        model._eval_tokens(ids, 0)
        for step in range(count):
            pointer = model._lib.llama_get_logits_ith(model._ctx, -1)
            emitted.append(int(np.frombuffer(model._ffi.buffer(pointer, 4 * model.n_vocab), np.float32).argmax()))
            model._eval_tokens(emitted[-1:], len(ids) + step)
        return emitted
