"""Tensors in files of an index: written atomically with their digest, read mapped after it was compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lessen import files
from lessen.errors import ArtifactError
from lessen.retrieval.manifest import Written


def save(folder: Path, name: str, tensors: Mapping[str, Tensor], without: Sequence[str] = ()) -> dict[str, Any]:
    """Write tensors to a new file and sync it; return its name, bytes and SHA-256. Raises OutputError."""
    from safetensors.torch import save as serialise

    own: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key not in without:
            seen = any(tensor.data_ptr() == other.data_ptr() for other in own.values())
            own[key] = tensor.clone() if seen else tensor.contiguous()  # two stages may hold the same vectors
    raw = serialise(own)
    files.atomic_write(folder / name, raw)
    return {"name": name, "bytes": len(raw), "sha256": files.digest(raw)}


def load_mapped(folder: Path, written: Written, verify: bool) -> dict[str, Tensor]:
    """Return the tensors of a file, mapped.

    Raises:
        ArtifactError: it is absent, torn, or (with `verify`) not what was written.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / written.name
    try:
        if verify:
            files.check_file(path, written.sha256, written.bytes)
        elif path.stat().st_size != written.bytes:
            raise ArtifactError(f"{path} has {path.stat().st_size} bytes, {written.bytes} were recorded: it is torn")
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
