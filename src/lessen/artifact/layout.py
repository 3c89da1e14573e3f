"""The files of an artifact's folder: their names, roles and digests, read without trusting any of them.

Format 1 holds whole weights in one file. Format 2 may hold shards, a delta to a base, patches, and further files by
role. What fits format 1 is written in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lessen import files
from lessen.artifact.structure import ModuleRecord
from lessen.errors import ArtifactError

WHOLE, EXTENDED = 1, 2
FORMATS = (WHOLE, EXTENDED)
WEIGHTS, STRUCTURE, PROBE, MANIFEST = "model.safetensors", "structure.json", "probe.safetensors", "manifest.json"
OTHER_FILES = ("recipe.yaml", "measurement.json", "card.md")
MAX_STRUCTURE = 16 << 20
GIVEN_ROLES = ("adapter", "index", "bitstream", "tokenizer", "prompt", "rows")
"""Roles of files that a method adds beside the weights."""
APART = {"prefix": "prefix.safetensors"}
"""Files of tensors that a patch keeps apart from the weights, by role (`StoredPatch.role`)."""
Role = Literal[
    "weights", "structure", "probe", "text", "adapter", "index", "bitstream", "tokenizer", "prompt", "rows", "prefix"
]
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class FileEntry(BaseModel):
    """One line of the manifest."""

    model_config = ConfigDict(extra="forbid", strict=True)
    sha256: str
    bytes: int
    role: Role | None = None
    """What the file is for; None in format 1, where the name says it."""
    counted: bool | None = None
    """Whether serving needs the file, so that `stored_bytes` counts it."""


class Manifest(BaseModel):
    """Content of manifest.json."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: int
    files: dict[str, FileEntry]

    def weights(self) -> list[str]:
        """Return the names of the weight files, in order."""
        return sorted(name for name, entry in self.files.items() if role_of(name, entry) == "weights")

    def tensor_files(self) -> list[str]:
        """Return the names of all files whose tensors belong to the model's state."""
        return [*self.weights(), *(name for name, entry in self.files.items() if role_of(name, entry) in APART)]

    def counted_bytes(self) -> int:
        """Return the bytes of the files that serving needs."""
        return sum(entry.bytes for name, entry in self.files.items() if is_counted(name, entry))


class BaseReference(BaseModel):
    """The model that a delta is taken from, by reference."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["task", "folder", "own"]
    """A task whose reference comes with its weights; a Hugging Face folder; or a model that only its owner has."""
    digest: str
    """SHA-256 of names, shapes, types and values of its state."""
    name: str | None = None
    """Of a folder: its name or Hugging Face id."""
    revision: str | None = None
    """Of a folder: its commit, where it has one."""


class Structure(BaseModel):
    """Content of structure.json."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: int
    lessen: str
    torch: str
    task: dict[str, Any] | None
    modules: list[ModuleRecord]
    tied: dict[str, str]
    """Tensors that share memory with another: name to the name that is stored."""
    weights: Literal["whole", "delta"] = "whole"
    base: BaseReference | None = None
    same: list[str] = []
    """Tensors of the base that stay: names, or `path.*` for all below a module, or `*`."""
    moved: dict[str, str] = {}
    """Tensors of the base that stand elsewhere now: name to its name in the base."""
    patches: list[ModuleRecord] = []
    """What adds itself to the model rather than replace a module."""

    def text(self) -> str:
        """Return the file's content; of format 1 without the keys that it did not have."""
        later = {"weights", "base", "same", "moved", "patches"}
        return files.dump_json(self.model_dump(exclude=later if self.format == WHOLE else None))


def shard_names(count: int) -> list[str]:
    """Return the names of `count` weight files."""
    return [WEIGHTS] if count == 1 else [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]


def role_of(name: str, entry: FileEntry) -> str | None:
    """Return what a file is for; None for a name that no artifact of its format holds."""
    known = {WEIGHTS: "weights", STRUCTURE: "structure", PROBE: "probe", **dict.fromkeys(OTHER_FILES, "text")}
    if name in known or _SHARD.fullmatch(name):
        return known.get(name, "weights")
    if entry.role in APART:
        return entry.role if name == APART[entry.role] else None
    return entry.role if entry.role in GIVEN_ROLES and _NAME.fullmatch(name) else None


def is_counted(name: str, entry: FileEntry) -> bool:
    """Tell whether serving needs the file."""
    if role_of(name, entry) in ("weights", "structure", *APART):
        return True
    return bool(entry.counted) and role_of(name, entry) in GIVEN_ROLES


def check_given_name(name: str, role: str) -> None:
    """Refuse a name or role that a further file cannot have. Raises ArtifactError."""
    if role not in GIVEN_ROLES:
        raise ArtifactError(f"{name}: {role!r} is not a role of a file; allowed: {', '.join(GIVEN_ROLES)}")
    entry = FileEntry(sha256="", bytes=0)
    taken = name == MANIFEST or name in APART.values() or role_of(name, entry)
    if not _NAME.fullmatch(name) or taken or name.startswith(files.TEMPORARY):
        raise ArtifactError(f"{name!r} cannot name a file of an artifact; use letters, digits, dots and dashes")


# -- reading -----------------------------------------------------------------------------------------------------
def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder. Raises ArtifactError for anything that is no artifact of a known format."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a directory; give the folder that holds {MANIFEST}")
    raw = files.read_checked(folder / MANIFEST, limit=files.MAX_TEXT_BYTES)
    manifest: Manifest = _validated(Manifest, raw, folder / MANIFEST)
    if manifest.format not in FORMATS:
        raise ArtifactError(f"{folder} has format {manifest.format}, this version reads 1 and 2; update lessen")
    for name, entry in manifest.files.items():
        if role_of(name, entry) is None or (manifest.format == WHOLE and (entry.role or _SHARD.fullmatch(name))):
            raise ArtifactError(f"{folder / MANIFEST} lists {name!r}, which is not a file of an artifact")
    found = manifest.weights()
    if STRUCTURE not in manifest.files or found != shard_names(max(1, len(found))):
        missing = STRUCTURE if STRUCTURE not in manifest.files else " or ".join(shard_names(max(1, len(found))))
        raise ArtifactError(f"{folder / MANIFEST} does not list {missing}; the artifact is incomplete")
    return manifest


def check_files(folder: Path) -> Manifest:
    """Verify that the folder holds exactly the files of its manifest, unchanged. Raises ArtifactError."""
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        files.check_file(folder / name, entry.sha256, entry.bytes)
    extra = {item.name for item in folder.iterdir()} - set(manifest.files) - {MANIFEST}
    extra = {name for name in extra if not name.startswith(files.TEMPORARY)}
    if extra:
        raise ArtifactError(f"{folder} holds {sorted(extra)[0]!r}, which its manifest does not list; remove it")
    return manifest


def read_structure(folder: Path, manifest: Manifest) -> Structure:
    """Return what structure.json says. Raises ArtifactError."""
    raw = files.read_checked(folder / STRUCTURE, manifest.files[STRUCTURE].sha256, limit=MAX_STRUCTURE)
    structure: Structure = _validated(Structure, raw, folder / STRUCTURE)
    if structure.format not in FORMATS:
        raise ArtifactError(f"{folder} has format {structure.format}, this version reads 1 and 2; update lessen")
    if (structure.weights == "delta") != (structure.base is not None):
        raise ArtifactError(f"{folder / STRUCTURE}: weights that are a delta need a base, and only they")
    return structure


def _validated(cls: type[Any], raw: bytes, where: Path) -> Any:
    value = files.parse_json(raw, str(where))
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{where}: {key or 'content'}: {first['msg'].lower()}") from error


def manifest_text(format_number: int, entries: Mapping[str, FileEntry]) -> str:
    """Return the content of manifest.json."""
    content = Manifest(format=format_number, files=dict(entries))
    return files.dump_json(content.model_dump(exclude_none=True))
