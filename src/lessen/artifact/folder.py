"""An artifact: one directory that holds a compact model whole, verified on load, without pickle.

model.safetensors   every tensor of the state dictionary, tied tensors once; beyond 512 MB in shards, model-00001-of-...
structure.json      the task (or nothing, for a user's own model) and the modules that were replaced; of a delta, its
                    base and the tensors that stay as the base has them
probe.safetensors   one batch of inputs and the outputs that the model gave for it when it was saved
recipe.yaml         the steps that made it        measurement.json, card.md   what it costs and how good it is
prefix.safetensors  the states of the tokens that all texts start with, where a model keeps them (role `prefix`)
...                 files by role: adapter, index, bitstream, tokenizer, prompt, rows
manifest.json       SHA-256 and size of each of the above
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lessen import files
from lessen.architectures.intake import laid_open
from lessen.artifact import probe as probes
from lessen.artifact.delta import borrowed, named, take
from lessen.artifact.fit import check_stored, refusing
from lessen.artifact.layout import (
    APART,
    EXTENDED,
    MANIFEST,
    OTHER_FILES,
    PROBE,
    STRUCTURE,
    WEIGHTS,
    WHOLE,
    BaseReference,
    FileEntry,
    Structure,
    check_files,
    check_given_name,
    manifest_text,
    read_manifest,
    read_structure,
    role_of,
    shard_names,
)
from lessen.artifact.state import unwrapped
from lessen.artifact.structure import assemble, describe, hollow, is_patch, staying
from lessen.artifact.tensors import (
    SHARD_BYTES,
    Filed,
    Hashing,
    Held,
    Joined,
    Weights,
    bytes_of,
    distinct,
    file_bytes,
    shards,
    state_of,
    write,
)
from lessen.data.offline import without_downloads
from lessen.errors import ArtifactError, LessenError
from lessen.stored.base import StoredPatch
from lessen.task import Task
from lessen.tasks import architecture_of, get_task
from lessen.version import __version__

Opened = TypeVar("Opened")
__all__ = [
    "MANIFEST", "OTHER_FILES", "PROBE", "STRUCTURE", "WEIGHTS", "GivenFile", "Sizes", "Verification", "attach",
    "check_files", "given_file", "load", "save", "sizes", "stored_size", "verify",
]  # fmt: skip


class GivenFile(NamedTuple):
    """A further file of an artifact, such as an index or a prompt."""

    role: str
    content: bytes | Path
    counted: bool = True
    """Whether serving needs it, so that `stored_bytes` counts it."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of an artifact."""

    stored_bytes: int
    """Bytes of the files that it adds to what is there."""
    serving_bytes: int
    """Bytes that serving needs: of a delta, those of the base's tensors too."""


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    path: Path
    files: int
    probe: str
    """`equal` bit for bit, `close` within rounding, or `none` when no probe was stored."""
    largest_difference: float
    stored_bytes: int
    serving_bytes: int


@dataclass(frozen=True)
class _Plan:
    """All that is written of the weights, before anything is."""

    structure: Structure
    shards: list[dict[str, Tensor]]
    borrowed_bytes: int
    apart: dict[str, dict[str, Tensor]]
    """Tensors of patches that have a file of their own, by its role."""
    text: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.structure.text())

    def sizes(self) -> Sizes:
        """Return the sizes by arithmetic."""
        stored = sum(map(file_bytes, [*self.shards, *self.apart.values()])) + len(self.text.encode())
        return Sizes(stored, stored + self.borrowed_bytes)


# -- saving ------------------------------------------------------------------------------------------------------
def save(
    path: Path | str,
    model: nn.Module,
    base: nn.Module,
    *,
    task: Mapping[str, Any] | None = None,
    probe: Any = None,
    extra: Mapping[str, str] | None = None,
    reference: BaseReference | None = None,
    given: Mapping[str, GivenFile] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write `model` to the new directory `path`, all or nothing, and return its stored bytes.

    Tensors are streamed to the disk: beside the model at most one of them is in memory.

    Args:
        base: the uncompressed model, or any model of its architecture; without `reference` only its structure is read.
        task: `task.describe()` of a built-in task, so that `load` can build the base by itself.
        probe: inputs (tensor, tuple or dict of tensors) to record with the outputs they give.
        extra: text of recipe.yaml, measurement.json or card.md.
        reference: `base_of(base)`: store a delta to `base`, without the tensors that equal its own.
        given: further files by name, each with its role.
        shard_bytes: bytes of tensors that one file holds at most.

    Raises:
        OutputError: the directory exists and is not empty, or cannot be written.
        ArtifactError: the model holds a module or a tensor that no artifact can describe.
    """
    _check_names(extra or {})
    for name, further in (given or {}).items():
        check_given_name(name, further.role)
    model, base = unwrapped(model), unwrapped(base)
    check_stored(model)
    plan = _plan(model, base, task, reference, shard_bytes, extended=bool(given))
    recorded = None if probe is None else probes.record(model, probe)
    entries: dict[str, FileEntry] = {}
    with files.atomic_folder(Path(path)) as folder:
        for name, tensors in zip(shard_names(len(plan.shards)), plan.shards, strict=True):
            entries[name] = _write_tensors(folder / name, tensors)
        for role, tensors in plan.apart.items():
            written = _write_tensors(folder / APART[role], tensors)
            entries[APART[role]] = written.model_copy(update={"role": role, "counted": True})
        entries[STRUCTURE] = _write_text(folder / STRUCTURE, plan.text)
        if recorded is not None:
            entries[PROBE] = _write_tensors(folder / PROBE, recorded)
        for name, text in (extra or {}).items():
            entries[name] = _write_text(folder / name, text)
        for name, further in (given or {}).items():
            entries[name] = _write_given(folder / name, further)
        files.atomic_write(folder / MANIFEST, manifest_text(plan.structure.format, entries))
    return plan.sizes().stored_bytes + sum(entries[name].bytes for name, one in (given or {}).items() if one.counted)


def attach(path: Path | str, extra: Mapping[str, str]) -> None:
    """Add or replace recipe.yaml, measurement.json or card.md of an artifact, and its manifest line."""
    _check_names(extra)
    folder = Path(path)
    manifest = read_manifest(folder)
    for name, text in extra.items():
        manifest.files[name] = _write_text(folder / name, text)
    files.atomic_write(folder / MANIFEST, manifest_text(manifest.format, manifest.files))


def stored_size(
    model: nn.Module, base: nn.Module, task: Mapping[str, Any] | None = None, reference: BaseReference | None = None
) -> int:
    """Return the bytes that `save` would count, by arithmetic: nothing is written or copied."""
    return sizes(model, base, task, reference).stored_bytes


def sizes(
    model: nn.Module, base: nn.Module, task: Mapping[str, Any] | None = None, reference: BaseReference | None = None
) -> Sizes:
    """Return what `save` would store and what serving would need, by arithmetic."""
    return _plan(unwrapped(model), unwrapped(base), task, reference, SHARD_BYTES).sizes()


def _plan(
    model: nn.Module,
    base: nn.Module,
    task: Mapping[str, Any] | None,
    reference: BaseReference | None,
    shard_bytes: int,
    extended: bool = False,
) -> _Plan:
    state, records = state_of(model), describe(model, base)
    same: list[str] = []
    moved: dict[str, str] = {}
    total = bytes_of(distinct(state)[0])
    if reference is not None:
        state, same, moved = take(state, state_of(base))
    tensors, tied = distinct(state)
    taken = bytes_of(tensors)
    apart = _apart(model, tensors)
    groups = shards(tensors, shard_bytes)
    extended = extended or reference is not None or len(groups) > 1 or bool(apart)
    patches = [record for record in records if is_patch(record)] if extended else []
    structure = Structure(
        format=EXTENDED if extended else WHOLE,
        lessen=__version__,
        torch=str(torch.__version__),
        task=dict(task) if task else None,
        modules=[record for record in records if record not in patches],
        tied=tied,
        weights="whole" if reference is None else "delta",
        base=reference,
        same=same,
        moved=moved,
        patches=patches,
    )
    return _Plan(structure, groups, total - taken if reference is not None else 0, apart)


def _apart(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Take out of `tensors` those of patches that have a file of their own, and return them by its role."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, child in model.named_children():
        if isinstance(child, StoredPatch) and child.role is not None:
            own = [key for key in tensors if key.startswith(f"{name}.")]
            found[child.role] = {key: tensors.pop(key) for key in own}
    return found


def _check_names(extra: Mapping[str, str]) -> None:
    for name in extra:
        if name not in OTHER_FILES:
            raise ArtifactError(f"{name!r} is not a file of an artifact; allowed: {', '.join(OTHER_FILES)}")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    with files.atomic_stream(path) as handle:
        out = Hashing(handle)
        write(out, tensors)
    return FileEntry(sha256=out.found.hexdigest(), bytes=out.bytes)


def _write_text(path: Path, text: str) -> FileEntry:
    data = text.encode()
    files.atomic_write(path, data)
    return FileEntry(sha256=files.digest(data), bytes=len(data))


def _write_given(path: Path, given: GivenFile) -> FileEntry:
    with files.atomic_stream(path) as handle:
        out = Hashing(handle)
        if isinstance(given.content, bytes):
            out.write(given.content)
        else:
            with files.open_regular(given.content) as source:
                while piece := source.read(1 << 20):
                    out.write(piece)
    return FileEntry(sha256=out.found.hexdigest(), bytes=out.bytes, role=given.role, counted=given.counted)  # type: ignore[arg-type]


# -- loading -----------------------------------------------------------------------------------------------------
def load(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Return the compact module of an artifact, in eval mode, after checking every digest.

    Files are mapped one at a time and copied tensor by tensor. Nothing is downloaded.

    Args:
        model: for an artifact of your own model: an instance of the uncompressed architecture (never changed), which
            may be on the device "meta". A delta needs the base itself. Artifacts of built-in tasks need none.

    Raises:
        ArtifactError: a file is missing, changed, unreadable or describes something that cannot be built.
    """
    return _load(Path(path), model)[0]


def _load(folder: Path, model: nn.Module | None) -> tuple[nn.Module, Structure, int]:
    """Return the module, the structure, and the bytes of the tensors that a delta takes from its base."""
    manifest = check_files(folder)
    structure = read_structure(folder, manifest)
    filed = Filed([folder / name for name in manifest.tensor_files()])
    records = [*structure.modules, *structure.patches]
    if structure.base is None:
        base = _architecture(structure, folder, filed) if model is None else laid_open(model)
        weights: Weights = filed
        left: dict[str, Tensor] = {}
    else:
        base = _base(structure, folder) if model is None else laid_open(model)
        left = borrowed(structure, base, str(folder))
        weights = Joined(filed, Held(left))
    empty = hollow(base, records, weights, structure.tied, str(folder))
    result = assemble(empty, records, weights, structure.tied, str(folder))
    return result.eval(), structure, bytes_of(distinct(left)[0])


def verify(path: Path | str, model: nn.Module | None = None) -> Verification:
    """Check every digest, rebuild the model and run its probe. Raises ArtifactError when outputs differ."""
    folder = Path(path)
    result, structure, left = _load(folder, model)
    manifest = read_manifest(folder)
    stored = manifest.counted_bytes()
    found = Verification(folder, len(manifest.files), "none", 0.0, stored, stored + left)
    if PROBE not in manifest.files:
        return found
    recorded = {name: tensor.clone() for name, tensor in Filed([folder / PROBE])}
    difference = probes.run(result, recorded, str(folder), structure.torch)
    return Verification(
        folder, found.files, "equal" if difference == 0 else "close", difference, stored, found.serving_bytes
    )


def given_file(path: Path | str, name: str) -> Path:
    """Return the path of a further file of an artifact, its digest checked. Raises ArtifactError."""
    folder = Path(path)
    entry = read_manifest(folder).files.get(name)
    if entry is None or role_of(name, entry) is None:
        raise ArtifactError(f"{folder} holds no file {name!r}")
    files.check_file(folder / name, entry.sha256, entry.bytes)
    return folder / name


def _architecture(structure: Structure, folder: Path, filed: Filed) -> nn.Module:
    """Return the untrained model of the artifact's task: without memory where it can be, never with a download.

    Its sizes are compared with the weight file before memory is taken for it.
    """
    if structure.task is None:
        raise ArtifactError(
            f"{folder} holds a model of your own; pass its architecture: lessen.load(path, model=MyNet()), "
            "or --model FILE.py:NET or --task FILE.py:TASK on the command line"
        )
    build = _of_task(structure, folder, lambda task: architecture_of(task, str(folder / STRUCTURE)))
    model: nn.Module | None = None
    with suppress(Exception), torch.device("meta"):
        model = build()
    if model is not None:
        staying(model, [*structure.modules, *structure.patches], filed, structure.tied, str(folder))
        if not any(buffer.is_meta and not kept for buffer, kept in _buffers(model)):
            return model
    with refusing(f"{folder}: the model of its task cannot be built"), without_downloads():
        return build()


def _base(structure: Structure, folder: Path) -> nn.Module:
    """Return the model that a delta was taken from, where the artifact's task brings it."""
    assert structure.base is not None
    if structure.base.kind == "task" and structure.task is not None:
        task: Task = _of_task(structure, folder, lambda task: get_task(task, str(folder / STRUCTURE)))
        if task.pretrained:
            with without_downloads():
                return task.reference()
    raise ArtifactError(f"{folder} is a delta without its base: {named(structure.base)}")


def _of_task(structure: Structure, folder: Path, open_task: Callable[[Any], Opened]) -> Opened:
    try:
        with without_downloads(), refusing(f"{folder}: its task cannot be opened"):
            return open_task(structure.task)
    except LessenError as error:
        raise ArtifactError(f"{error}; or pass the architecture: lessen.load(path, model=...)") from error


def _buffers(model: nn.Module) -> list[tuple[Tensor, bool]]:
    """Return every buffer of a model, and whether its state keeps it."""
    return [
        (buffer, name not in module._non_persistent_buffers_set)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
