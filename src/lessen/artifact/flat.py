"""An artifact as one small file: every byte told apart as weights, graph or metadata, and entropy coded where it helps.

    LESSEN-FLAT 1 | length | index (deflated JSON: name, kind, bytes, bytes stored) | parts, one after the other

A part is a file of the folder; a file of tensors is two parts, its header and its payload. Each is stored as it is or
by DEFLATE, whichever is smaller. What comes out is the folder, byte for byte.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lessen.artifact.layout import MANIFEST, STRUCTURE
from lessen.errors import ArtifactError
from lessen.files import atomic_folder, atomic_write, parse_json, read_checked

MAGIC = b"LESSEN-FLAT 1\n"
LARGEST = 1 << 31
"""Bytes that a part may have once it is read: what is larger belongs into a folder."""
LARGEST_INDEX = 1 << 20
TENSORS = ".safetensors"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    kind: str = Field(pattern="^(weights|graph|metadata)$")
    bytes: int = Field(ge=0, le=LARGEST)
    stored: int = Field(ge=0, le=LARGEST)


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    parts: list[_Part]


@dataclass(frozen=True)
class FlatBytes:
    """The parts that the bytes of a file are in; they add up to it.

    Attributes:
        weights: payloads of tensors, as stored.
        graph: the structure, and names, shapes and types of tensors.
        metadata: digests, recipe and card, the index and the mark of the format.
        raw_weights: payloads of tensors before they were coded.
    """

    weights: int
    graph: int
    metadata: int
    raw_weights: int

    @property
    def total(self) -> int:
        """Bytes of the file."""
        return self.weights + self.graph + self.metadata


def write_flat(folder: Path | str, path: Path | str) -> FlatBytes:
    """Write the artifact in `folder` to the file `path`, all or nothing, and say where its bytes are.

    Raises:
        ArtifactError: the folder holds no artifact, or further folders.
        OutputError: the file cannot be written.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder} holds no {MANIFEST}; give the folder of an artifact")
    inner = next((one.name for one in sorted(folder.iterdir()) if one.is_dir()), None)
    if inner is not None:
        raise ArtifactError(
            f"{folder} holds the folder {inner}, which one flat file cannot; keep the artifact as it is"
        )
    pieces = [piece for file in sorted(folder.iterdir()) for piece in _pieces(file)]
    stored = [min(raw, zlib.compress(raw, 9), key=len) for _, _, raw in pieces]
    parts = [
        _Part(name=name, kind=kind, bytes=len(raw), stored=len(held))
        for (name, kind, raw), held in zip(pieces, stored, strict=True)
    ]
    index = zlib.compress(_Index(parts=parts).model_dump_json().encode(), 9)
    head = MAGIC + struct.pack("<I", len(index)) + index
    atomic_write(Path(path), b"".join([head, *stored]))
    sizes = {kind: sum(p.stored for p in parts if p.kind == kind) for kind in ("weights", "graph", "metadata")}
    raw_weights = sum(part.bytes for part in parts if part.kind == "weights")
    return FlatBytes(sizes["weights"], sizes["graph"], sizes["metadata"] + len(head), raw_weights)


def read_flat(path: Path | str, folder: Path | str) -> None:
    """Write the artifact in the file `path` to the new folder `folder`; load it from there, digests and all.

    Raises:
        ArtifactError: the file is damaged, or no such file.
        OutputError: the folder exists or cannot be written.
    """
    where = f"{path}"
    raw = read_checked(Path(path))
    if not raw.startswith(MAGIC) or len(raw) < len(MAGIC) + 4:
        raise ArtifactError(f"{where} is no flat artifact: it does not start with {MAGIC.decode().strip()!r}")
    (length,) = struct.unpack_from("<I", raw, len(MAGIC))
    start = len(MAGIC) + 4 + length
    index = _inflated(raw[len(MAGIC) + 4 : start], LARGEST_INDEX, None, f"{where}: the index")
    try:
        parts = _Index.model_validate(parse_json(index, where)).parts
    except ValidationError as error:
        raise ArtifactError(f"{where}: the index is damaged: {error.errors()[0]['msg']}") from None
    if start + sum(part.stored for part in parts) != len(raw):
        raise ArtifactError(f"{where} holds {len(raw)} bytes, the index says otherwise; it is cut short or damaged")
    files: dict[str, bytes] = {}
    for part in parts:
        held = raw[start : start + part.stored]
        start += part.stored
        whole = held if part.stored == part.bytes else _inflated(held, part.bytes, part.bytes, f"{where}: {part.name}")
        files[part.name] = files.get(part.name, b"") + whole
    with atomic_folder(Path(folder)) as made:
        for name, content in files.items():
            (made / name).write_bytes(content)


def _pieces(file: Path) -> list[tuple[str, str, bytes]]:
    """Return (name, kind, bytes) of the parts of a file."""
    raw = file.read_bytes()
    if file.suffix != TENSORS:
        return [(file.name, "graph" if file.name == STRUCTURE else "metadata", raw)]
    (length,) = struct.unpack_from("<Q", raw)
    return [(file.name, "graph", raw[: 8 + length]), (file.name, "weights", raw[8 + length :])]


def _inflated(held: bytes, most: int, exactly: int | None, where: str) -> bytes:
    """Return what DEFLATE holds, which is never larger than told. Raises ArtifactError."""
    machine: Any = zlib.decompressobj()
    try:
        found: bytes = machine.decompress(held, most + 1)
    except zlib.error as error:
        raise ArtifactError(f"{where} is damaged: {error}") from None
    if len(found) > most or not machine.eof or (exactly is not None and len(found) != exactly):
        raise ArtifactError(f"{where} is damaged: it does not hold the bytes that the index says")
    return found
