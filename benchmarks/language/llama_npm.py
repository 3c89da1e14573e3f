"""llama.cpp as the npm package `@node-llama-cpp/linux-x64` builds it, loaded by ctypes.

The package carries builds for many processors and takes the best that this one runs (`build`): AVX-512 with VNNI on
Zen 4, AVX2 ("haswell") on a chip without. Fetch it with `npm pack @node-llama-cpp/linux-x64@3.22.1` and unpack it; pass
the folder that holds `libllama.*.so`.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

Q4_0, Q8_0, F16 = 2, 7, 1
"""Numbers of file types."""
_THREADS = 4
"""What llama.cpp takes without being told, by which the fields are found: their place differs between versions."""


class _Opaque(ctypes.Structure):
    """Parameters by value: larger than any of them, which the calling convention allows; known fields come first."""

    _fields_ = [("head", ctypes.c_int32 * 16), ("rest", ctypes.c_uint8 * 960)]


class _Batch(ctypes.Structure):
    _fields_ = [("n_tokens", ctypes.c_int32), ("token", ctypes.c_void_p), ("others", ctypes.c_void_p * 5)]


class Library:
    """The shared objects of one folder."""

    def __init__(self, folder: Path) -> None:
        base = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
        ggml = ctypes.CDLL(str(next(folder.glob("libggml.*.so"))), ctypes.RTLD_GLOBAL)
        self.llama = ctypes.CDLL(str(next(folder.glob("libllama.v*.so"))), ctypes.RTLD_GLOBAL)
        self._quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        self.llama.llama_log_set(self._quiet, None)
        base.ggml_log_set(self._quiet, None)
        ggml.ggml_backend_load_all_from_path(str(folder).encode())
        self.llama.llama_backend_init()
        loaded = Path("/proc/self/maps").read_text()
        self.build = next((line.rsplit("/", 1)[1] for line in loaded.splitlines() if "libggml-cpu-" in line), "unknown")
        for name in (
            "llama_model_default_params",
            "llama_context_default_params",
            "llama_model_quantize_default_params",
        ):
            getattr(self.llama, name).restype = _Opaque
        for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_get_memory"):
            getattr(self.llama, name).restype = ctypes.c_void_p
        self.llama.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _Opaque]
        self.llama.llama_init_from_model.argtypes = [ctypes.c_void_p, _Opaque]
        self.llama.llama_get_memory.argtypes = [ctypes.c_void_p]
        self.llama.llama_memory_seq_rm.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
        self.llama.llama_decode.argtypes = [ctypes.c_void_p, _Batch]
        self.llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]

    def quantise(self, source: Path, target: Path, kind: int) -> None:
        """Write a GGUF file in another type, from one that may be quantised."""
        given = self.llama.llama_model_quantize_default_params()
        given.head[0], given.head[1] = 2, kind
        ctypes.cast(ctypes.addressof(given) + 16, ctypes.POINTER(ctypes.c_bool))[0] = True  # allow_requantize
        if self.llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(given)) != 0:
            raise SystemExit(f"llama.cpp could not write {target}")


class Model:
    """One file with a context for `places` tokens."""

    def __init__(self, library: Library, file: Path, threads: int, places: int = 1024) -> None:
        self._llama = library.llama
        model = self._llama.llama_model_load_from_file(str(file).encode(), self._llama.llama_model_default_params())
        given = self._llama.llama_context_default_params()
        given.head[0], given.head[1], given.head[2] = places, 512, 512
        at = next(number for number in range(4, 15) if given.head[number] == given.head[number + 1] == _THREADS)
        given.head[at], given.head[at + 1] = threads, threads
        self._context = self._llama.llama_init_from_model(model, given)
        if not model or not self._context:
            raise SystemExit(f"llama.cpp could not load {file}")
        self._memory = self._llama.llama_get_memory(self._context)

    def run(self, tokens: list[int]) -> None:
        """Add tokens behind those that are there."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = _Batch(len(tokens), ctypes.addressof(ids))
        if self._llama.llama_decode(self._context, batch) != 0:
            raise SystemExit("llama.cpp could not decode")
        self._llama.llama_synchronize(ctypes.c_void_p(self._context))

    def cut(self, length: int) -> None:
        """Forget all but the first tokens."""
        self._llama.llama_memory_seq_rm(self._memory, 0, length, -1)
