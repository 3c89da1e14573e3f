"""An artifact: one directory that holds a compact model whole, verified on load, without pickle.

model.safetensors   every tensor of the state dictionary, tied tensors once
structure.json      the task (or nothing, for a user's own model) and the modules that were replaced
probe.safetensors   one batch of inputs and the outputs that the model gave for it when it was saved
recipe.yaml         the steps that made it        measurement.json, card.md   what it costs and how good it is
manifest.json       SHA-256 and size of each of the above
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from lessen import files
from lessen.artifact.structure import ModuleRecord, check_stored, describe, rebuild, state_shapes
from lessen.errors import ArtifactError
from lessen.task import call_model
from lessen.tasks import get_task
from lessen.version import __version__

FORMAT = 1
WEIGHTS, STRUCTURE, PROBE, MANIFEST = "model.safetensors", "structure.json", "probe.safetensors", "manifest.json"
OTHER_FILES = ("recipe.yaml", "measurement.json", "card.md")
COUNTED = (WEIGHTS, STRUCTURE)
"""Files that serving needs: `stored_bytes` is the sum of their sizes."""


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


class FileEntry(BaseModel):
    """One line of the manifest."""

    model_config = ConfigDict(extra="forbid", strict=True)
    sha256: str
    bytes: int


class Manifest(BaseModel):
    """Content of manifest.json."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: int
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    path: Path
    files: int
    probe: str
    """`equal` bit for bit, `close` within 1e-5, or `none` when no probe was stored."""
    largest_difference: float
    stored_bytes: int


# -- saving ------------------------------------------------------------------------------------------------------
def save(
    path: Path | str,
    model: nn.Module,
    base: nn.Module,
    *,
    task: Mapping[str, Any] | None = None,
    probe: Any = None,
    extra: Mapping[str, str] | None = None,
) -> int:
    """Write `model` to the new directory `path`, all or nothing, and return its stored bytes.

    Args:
        base: the uncompressed model, or any model of its architecture; only its structure is read.
        task: `task.describe()` of a built-in task, so that `load` can build the base by itself.
        probe: inputs (tensor, tuple or dict of tensors) to record with the outputs they give.
        extra: text of recipe.yaml, measurement.json or card.md.

    Raises:
        OutputError: the directory exists and is not empty, or cannot be written.
        ArtifactError: the model holds a module that no artifact can describe.
    """
    content = _content(model, base, task, probe)
    for name, text in (extra or {}).items():
        if name not in OTHER_FILES:
            raise ArtifactError(f"{name!r} is not a file of an artifact; allowed: {', '.join(OTHER_FILES)}")
        content[name] = text.encode()
    with files.atomic_folder(Path(path)) as folder:
        for name, raw in content.items():
            files.atomic_write(folder / name, raw)
        files.atomic_write(folder / MANIFEST, _manifest(content))
    return sum(len(content[name]) for name in COUNTED)


def attach(path: Path | str, extra: Mapping[str, str]) -> None:
    """Add or replace recipe.yaml, measurement.json or card.md of an artifact, and its manifest line."""
    folder = Path(path)
    manifest = _read_manifest(folder)
    for name, text in extra.items():
        if name not in OTHER_FILES:
            raise ArtifactError(f"{name!r} is not a file of an artifact; allowed: {', '.join(OTHER_FILES)}")
        raw = text.encode()
        files.atomic_write(folder / name, raw)
        manifest.files[name] = FileEntry(sha256=files.digest(raw), bytes=len(raw))
    files.atomic_write(folder / MANIFEST, files.dump_json(manifest.model_dump()))


def stored_size(model: nn.Module, base: nn.Module, task: Mapping[str, Any] | None = None) -> int:
    """Return the bytes that `save` would count, without writing."""
    content = _content(model, base, task, None)
    return sum(len(content[name]) for name in COUNTED)


def _content(model: nn.Module, base: nn.Module, task: Mapping[str, Any] | None, probe: Any) -> dict[str, bytes]:
    tensors, tied = _distinct(model.state_dict())
    structure = Structure(
        format=FORMAT,
        lessen=__version__,
        torch=str(torch.__version__),
        task=dict(task) if task else None,
        modules=describe(model, base),
        tied=tied,
    )
    content = {WEIGHTS: save_tensors(tensors), STRUCTURE: files.dump_json(structure.model_dump()).encode()}
    if probe is not None:
        content[PROBE] = save_tensors(_probe_tensors(model, probe))
    return content


def _manifest(content: Mapping[str, bytes]) -> str:
    entries = {name: FileEntry(sha256=files.digest(raw), bytes=len(raw)) for name, raw in content.items()}
    return files.dump_json(Manifest(format=FORMAT, files=entries).model_dump())


def _distinct(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split a state into contiguous distinct tensors and the names that share one of them."""
    kept: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        if tensor.numel() and key in kept:
            tied[name] = kept[key]
            continue
        kept[key] = name
        # clone: two views of one storage may overlap, which safetensors refuses
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensors, tied


def _probe_tensors(model: nn.Module, probe: Any) -> dict[str, Tensor]:
    inputs = {f"input.{key}": value.contiguous().clone() for key, value in _flatten(probe).items()}
    with torch.no_grad():
        output = call_model(model, probe)
    return {**inputs, "output": output.contiguous().clone()}


def _flatten(inputs: Any) -> dict[str, Tensor]:
    if isinstance(inputs, Tensor):
        return {"tensor": inputs}
    if isinstance(inputs, Mapping):
        items = {f"name.{key}": value for key, value in inputs.items()}
    else:
        items = {f"position.{number}": value for number, value in enumerate(inputs)}
    for key, value in items.items():
        if not isinstance(value, Tensor):
            raise ArtifactError(f"probe input {key} is a {type(value).__name__}; only tensors can be recorded")
    return items


def _unflatten(tensors: Mapping[str, Tensor]) -> Any:
    inputs = {key[len("input.") :]: value for key, value in tensors.items() if key.startswith("input.")}
    if "tensor" in inputs:
        return inputs["tensor"]
    if all(key.startswith("name.") for key in inputs):
        return {key[len("name.") :]: value for key, value in inputs.items()}
    return tuple(inputs[f"position.{number}"] for number in range(len(inputs)))


# -- loading -----------------------------------------------------------------------------------------------------
def load(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Return the compact module of an artifact, in eval mode, after checking every digest.

    Args:
        model: for an artifact of your own model: an instance of the uncompressed architecture (never changed).
            Artifacts of built-in tasks need none.

    Raises:
        ArtifactError: a file is missing, changed, unreadable or describes something that cannot be built.
    """
    folder = Path(path)
    manifest = check_files(folder)
    structure = _read_structure(folder, manifest)
    base = model if model is not None else _build_base(structure, folder)
    raw = files.read_checked(folder / WEIGHTS, manifest.files[WEIGHTS].sha256)
    state = _read_tensors(raw, folder / WEIGHTS)
    for name, source in structure.tied.items():
        if source not in state:
            raise ArtifactError(f"{folder}: {name!r} is tied to {source!r}, which the weight file does not hold")
        state[name] = state[source]
    return assemble(base, structure.modules, state, folder).eval()


def assemble(base: nn.Module, modules: list[ModuleRecord], state: Mapping[str, Tensor], where: Path) -> nn.Module:
    """Return a copy of `base` with the recorded modules in place and the tensors of `state` in them, all checked.

    Raises:
        ArtifactError: a module that cannot be built, a tensor that does not fit, a stored module whose tensors
            disagree with its configuration.
    """
    result = rebuild(base, modules, state_shapes(state))
    _check_state(result, state, where)
    result.load_state_dict(state, strict=True)
    check_stored(result)
    return result


def check_files(folder: Path) -> Manifest:
    """Verify that the folder holds exactly the files of its manifest, unchanged. Raises ArtifactError."""
    manifest = _read_manifest(folder)
    for name, entry in manifest.files.items():
        files.read_checked(folder / name, entry.sha256, limit=entry.bytes)
    extra = {item.name for item in folder.iterdir()} - set(manifest.files) - {MANIFEST}
    extra = {name for name in extra if not name.startswith(files.TEMPORARY)}
    if extra:
        raise ArtifactError(f"{folder} holds {sorted(extra)[0]!r}, which its manifest does not list; remove it")
    return manifest


def verify(path: Path | str, model: nn.Module | None = None) -> Verification:
    """Check every digest, rebuild the model and run its probe. Raises ArtifactError when outputs differ."""
    folder = Path(path)
    result = load(folder, model)
    manifest = _read_manifest(folder)
    stored = sum(manifest.files[name].bytes for name in COUNTED)
    if PROBE not in manifest.files:
        return Verification(folder, len(manifest.files), "none", 0.0, stored)
    tensors = _read_tensors(files.read_checked(folder / PROBE, manifest.files[PROBE].sha256), folder / PROBE)
    with torch.no_grad():
        output = call_model(result, _unflatten(tensors))
    expected = tensors["output"]
    if output.shape != expected.shape:
        raise ArtifactError(
            f"{folder}: the model gives outputs of shape {list(output.shape)}, not {list(expected.shape)}"
        )
    difference = float((output.double() - expected.double()).abs().max()) if output.numel() else 0.0
    scale = max(1.0, float(expected.double().abs().max())) if output.numel() else 1.0
    if not difference <= 1e-5 * scale:
        raise ArtifactError(
            f"{folder}: outputs differ from the recorded ones by {difference:.3g}; "
            f"it was written with torch {_read_structure(folder, manifest).torch}, this is {torch.__version__} "
            f"on {platform.machine()}"
        )
    return Verification(folder, len(manifest.files), "equal" if difference == 0 else "close", difference, stored)


def _read_manifest(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a directory; give the folder that holds {MANIFEST}")
    raw = files.read_checked(folder / MANIFEST, limit=files.MAX_TEXT_BYTES)
    manifest: Manifest = _validated(Manifest, raw, folder / MANIFEST)
    for name in manifest.files:
        if name not in (WEIGHTS, STRUCTURE, PROBE, *OTHER_FILES):
            raise ArtifactError(f"{folder / MANIFEST} lists {name!r}, which is not a file of an artifact")
    for name in COUNTED:
        if name not in manifest.files:
            raise ArtifactError(f"{folder / MANIFEST} does not list {name}; the artifact is incomplete")
    if manifest.format != FORMAT:
        raise ArtifactError(f"{folder} has format {manifest.format}, this version reads {FORMAT}; update lessen")
    return manifest


def _read_structure(folder: Path, manifest: Manifest) -> Structure:
    raw = files.read_checked(folder / STRUCTURE, manifest.files[STRUCTURE].sha256)
    structure: Structure = _validated(Structure, raw, folder / STRUCTURE)
    if structure.format != FORMAT:
        raise ArtifactError(f"{folder} has format {structure.format}, this version reads {FORMAT}; update lessen")
    return structure


def _validated(cls: type[Any], raw: bytes, where: Path) -> Any:
    value = files.parse_json(raw, str(where))
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{where}: {key or 'content'}: {first['msg'].lower()}") from error


def _build_base(structure: Structure, folder: Path) -> nn.Module:
    if structure.task is None:
        raise ArtifactError(
            f"{folder} holds a model of your own; pass its architecture: lessen.load(path, model=MyNet())"
        )
    return get_task(structure.task, where=str(folder / STRUCTURE)).build()


def _read_tensors(raw: bytes, where: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(raw)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{where} is not a valid safetensors file: {error}") from error


def _check_state(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Name the first tensor that is missing, unexpected, or of another shape or dtype."""
    expected = model.state_dict()
    for name, tensor in expected.items():
        found = state.get(name)
        if found is None:
            raise ArtifactError(f"{folder}: tensor {name!r} is missing; is it the right base model?")
        if found.shape != tensor.shape:
            raise ArtifactError(
                f"{folder}: tensor {name!r} has shape {list(found.shape)}, the model needs {list(tensor.shape)}"
            )
        if found.dtype != tensor.dtype:
            raise ArtifactError(f"{folder}: tensor {name!r} is {found.dtype}, the model needs {tensor.dtype}")
    for name in state:
        if name not in expected:
            raise ArtifactError(f"{folder}: tensor {name!r} has no place in the model; is it the right base model?")
