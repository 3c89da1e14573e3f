"""How other tools write a checkpoint of the language model, and its weights and moments as ExCP's recipe takes them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from benchmarks.checkpoints import runs


def safetensors_zstd(path: Path, level: int) -> bytes:
    import zstandard
    from safetensors.torch import save as serialise

    state = torch.load(path, weights_only=True)
    flat = {f"m.{k}": v for k, v in state["model"].items()}
    for index, values in state["optimizer"]["state"].items():
        flat |= {f"o.{index}.{k}": v for k, v in values.items()}
    return zstandard.ZstdCompressor(level=level).compress(serialise(flat))


def zipnn_bytes(path: Path) -> int:
    import zipnn

    return len(zipnn.ZipNN(bytearray_dtype="float32", input_format="byte").compress(bytearray(path.read_bytes())))


def seven_zip_bytes(path: Path) -> int:
    import py7zr

    memory = io.BytesIO()
    with py7zr.SevenZipFile(memory, "w") as archive:
        archive.writestr(path.read_bytes(), path.name)
    return memory.getbuffer().nbytes


def triples(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    state = torch.load(path, weights_only=True)
    names = [name for name, _ in runs.LanguageModel().named_parameters()]
    moments = state["optimizer"]["state"]
    return {
        name: (state["model"][name].numpy(), moments[k]["exp_avg"].numpy(), moments[k]["exp_avg_sq"].numpy())
        for k, name in enumerate(names)
    }
