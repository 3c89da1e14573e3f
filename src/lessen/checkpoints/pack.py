"""Writing an archive: one checkpoint after another, piece by piece, in bounded memory.

checkpoint files --images--> arrays --groups--> pieces --near | exact--> blocks --> frame --> index
                                                  ^                        |
                                                  +---- reference <--------+   (what unpacking will give)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lessen import files
from lessen.checkpoints import blocks
from lessen.checkpoints.archive import Chain
from lessen.checkpoints.building import FrameBuilder, read_piece, row_digests
from lessen.checkpoints.frames import Frame, writing_frame
from lessen.checkpoints.groups import Group, find_groups
from lessen.checkpoints.images import read_image
from lessen.checkpoints.index import NAME, Entry, Index, is_frame, one_writer, read_index, write_index
from lessen.checkpoints.layout import Layout, require_same_series
from lessen.checkpoints.near import NearSettings
from lessen.checkpoints.reference import Reference
from lessen.checkpoints.sources import Snapshot, refuse_odd_names
from lessen.errors import ArtifactError, ConfigError, DataError, OutputError
from lessen.log import SILENT, Log


class PackSettings(BaseModel):
    """How an archive is made; fixed when it is created."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Literal["near", "exact"] = "near"
    key_every: int = Field(20, ge=1, description="a key frame at least every so many steps: bounds what one step needs")
    weights_only: bool = Field(False, description="near: accept checkpoints without optimiser moments")
    near: NearSettings = NearSettings()


@dataclass(frozen=True)
class Packed:
    """What packing one checkpoint gave."""

    step: int
    raw_bytes: int
    bytes: int
    key: bool


class Packer:
    """Appends checkpoints to an archive; a context manager that holds the archive's only write lock.

    Raises:
        OutputError: another process writes to the archive, or its folder holds something else.
        ConfigError: the archive exists with other settings.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: PackSettings | None = None,
        log: Log = SILENT,
        patience: float = 0.0,
        allow: Collection[str] = (),
    ) -> None:
        """Name the archive.

        Args:
            settings: None takes those of an existing archive, or the defaults.
            patience: seconds to wait for another writer.
            allow: dotted names of classes that torch files may hold besides the usual ones; none is ever imported.
        """
        self.folder, self.log, self._allow = Path(folder), log, frozenset(allow)
        self._asked, self._patience = settings, patience
        self._stack = ExitStack()
        self._reference: Reference | None = None

    def __enter__(self) -> Packer:
        self._stack.enter_context(one_writer(self.folder, self._patience))
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
        self._stack.close()

    def _open(self) -> None:
        files.remove_stale(self.folder)
        if not (self.folder / NAME).exists():
            strangers = [path.name for path in self.folder.iterdir() if path.name != ".lock"]
            if strangers:
                raise OutputError(
                    f"{self.folder} is no archive and holds other files ({strangers[0]}); choose another place"
                )
            write_index(self.folder, Index((self._asked or PackSettings()).model_dump(mode="json")))
        self.index = read_index(self.folder)
        try:
            self.settings = PackSettings.model_validate(self.index.settings)
        except ValidationError as error:
            raise ArtifactError(f"{self.folder} has settings that this release cannot read: {error}") from error
        if self._asked is not None and self._asked != self.settings:
            raise ConfigError(
                f"{self.folder} was made with {_differences(self.settings, self._asked)}; "
                "use the same settings or another archive"
            )
        known = {entry.file for entry in self.index.entries}
        for frame in self.folder.glob("step-*.frame"):
            if frame.name not in known and is_frame(frame.name):  # written, but killed before the index said so
                frame.unlink()

    def _forget(self) -> None:
        if self._reference is not None:
            self._reference.close()
        self._reference = None

    @property
    def last_step(self) -> int | None:
        """The last step that is packed."""
        return self.index.entries[-1].step if self.index.entries else None

    def holds(self, snapshot: Snapshot) -> bool:
        """Say whether this very checkpoint is packed already: the same step and the same bytes."""
        for entry in self.index.entries:
            if entry.step == snapshot.step:
                with Frame(self.folder / entry.file, entry.digest) as frame:
                    expected: list[str] = frame.footer["sha256"]
                return sorted(files.sha256(file) for file, _ in snapshot.files) == sorted(expected)
        return False

    def missing(self, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
        """Return the snapshots that come after the last step; those before it must be there already, or be pruned.

        Raises:
            DataError: a step that is not what is packed under its number, or that came late: nothing of it is packed.
        """
        late = [one for one in snapshots if self.last_step is not None and one.step <= self.last_step]
        for snapshot in late:
            entry = next((entry for entry in self.index.entries if entry.step == snapshot.step), None)
            if entry is None:
                self._refuse_late(snapshot)
            elif entry.listed and not self._looks_packed(entry, snapshot) and not self.holds(snapshot):
                raise DataError(
                    f"{snapshot.source} is not what {self.folder} holds as step {snapshot.step}: it was written again. "
                    f"Pack into another archive, or drop that step and the later ones first: lessen checkpoint prune "
                    f"{self.folder} --keep-before {snapshot.step}"
                )
        return [snapshot for snapshot in snapshots if snapshot not in late]

    def _refuse_late(self, snapshot: Snapshot) -> None:
        if self.index.pruned is None:  # an archive of format 1: it may have been pruned
            self.log.note(f"{snapshot.source} is left out: step {self.last_step}, a later one, is packed already")
        elif snapshot.step not in self.index.pruned:
            raise DataError(
                f"{snapshot.source} (step {snapshot.step}) is not in {self.folder} and comes before its last step, "
                f"{self.last_step}; an archive grows at its end only. Pack the run into another archive, or drop the "
                f"later steps first: lessen checkpoint prune {self.folder} --keep-before {snapshot.step}"
            )

    def _looks_packed(self, entry: Entry, snapshot: Snapshot) -> bool:
        """Say whether a checkpoint is as large as when it was packed and was not written since."""
        stamps = _stamps(snapshot)
        packed = (self.folder / entry.file).stat().st_mtime_ns
        return sum(size for size, _ in stamps) == entry.raw_bytes and all(written < packed for _, written in stamps)

    def add(self, snapshot: Snapshot) -> Packed:
        """Pack one checkpoint; when this returns it is on disk and listed.

        Raises:
            ArtifactError: a file that would run code or is damaged.
            DataError: not of this series, not after the last step, without moments, or changed while being read.
            OutputError: the disk is full or unwritable; the archive is as before.
        """
        if self.last_step is not None and snapshot.step <= self.last_step:
            raise DataError(
                f"step {snapshot.step} does not come after step {self.last_step}, the last in {self.folder}; "
                "if the run went back to an earlier step, prune the later ones first"
            )
        refuse_odd_names(snapshot)
        layout, snapshot = self._read_layout(snapshot)
        name = f"step-{snapshot.step:09d}.frame"
        try:
            stamps = _stamps(snapshot)
            layout, key = self._prepare(layout, snapshot)
            with writing_frame(self.folder / name) as writer, _opened(snapshot) as handles:
                tick = partial(self.log.progress, f"packing step {snapshot.step}")
                near = self.settings.near if self.settings.mode == "near" else None
                builder = FrameBuilder(layout, handles, self._reference_for(layout), key, near)
                footer = builder.write(writer, {} if key else self._dictionaries(), tick)
                if _stamps(snapshot) != stamps:
                    raise DataError(f"{snapshot.source} changed while it was being packed; pack it when it is complete")
                digest = writer.finish({"step": snapshot.step, **footer})
            raw = sum(image.size for image in layout.images)
            entry = Entry(snapshot.step, name, digest, key, raw, writer.size, str(snapshot.source.absolute()))
            pruned = self.index.pruned and [step for step in self.index.pruned if step != snapshot.step]
            self.index = replace(self.index, pruned=pruned)
            write_index(self.folder, replace(self.index, entries=[*self.index.entries, entry]))
        except BaseException:
            self._forget()
            self.index = read_index(self.folder)  # the failure may have come after the index was replaced
            raise
        self.index.entries.append(entry)
        return Packed(snapshot.step, raw, writer.size, key)

    def _read_layout(self, snapshot: Snapshot) -> tuple[Layout, Snapshot]:
        """Return the layout of a checkpoint, and the checkpoint with files that hold arrays first."""
        read = [
            (read_image(file, path, snapshot.must_load(file, path), self._allow), (file, path))
            for file, path in snapshot.files
        ]
        read.sort(key=lambda pair: not pair[0].arrays)
        images = tuple(image for image, _ in read)
        near = self.settings.mode == "near"
        layout = Layout(images, tuple(find_groups(images, near and self.settings.weights_only)))
        if not layout.groups:
            raise DataError(f"{snapshot.source} holds no tensors; nothing to pack")
        if near and not layout.has_moments() and not self.settings.weights_only:
            raise DataError(
                f"{snapshot.source} has no optimiser moments beside its weights, which mode near needs; "
                "pack full checkpoints, choose mode exact, or weights_only to let weights alone lose precision"
            )
        return layout, replace(snapshot, files=tuple(pair for _, pair in read))

    def _prepare(self, layout: Layout, snapshot: Snapshot) -> tuple[Layout, bool]:
        """Load the step before as reference, if `layout` can build on it; say whether it must be a key frame."""
        if not self.index.entries:
            return layout, True
        chain = self.index.chain(len(self.index.entries) - 1)
        unsure = any(group.unsure for group in layout.groups) and self.settings.mode == "near"
        with Chain(self.folder, chain) as opened:
            last = opened.layouts[-1]
            require_same_series(last, chain[-1].step, layout, snapshot.step)
            key = len(chain) >= self.settings.key_every or last.signature() != layout.signature()
            if self._reference is None and (not key or unsure):
                self._reference_for(last).load(opened, self.log)
                self._reference_for(last).digests = _digests_of_source(
                    chain[-1], last, opened.frames[-1].footer["sha256"]
                )
        if unsure and last.signature() == layout.signature():
            layout = self._settle(layout, last, snapshot)
            key = key or layout.groups != last.groups
        if key:
            self._forget()
        return layout, key

    def _settle(self, layout: Layout, last: Layout, snapshot: Snapshot) -> Layout:
        """Tell weights from frozen arrays of the same shape by which of them moved since the step before."""
        shapes = {layout.shape(group) for group in layout.groups if group.unsure}
        suspects = [g for g, group in enumerate(last.groups) if last.shape(group) in shapes]
        with _opened(snapshot) as handles:
            still = {
                place
                for g in suspects
                for role, place in last.groups[g].members.items()
                if role in ("weight", "other") and not self._has_moved(layout, last, g, role, handles)
            }
        return Layout(layout.images, tuple(find_groups(layout.images, still=still)))

    def _has_moved(self, layout: Layout, last: Layout, g: int, role: str, handles: Sequence[BinaryIO]) -> bool:
        only = Group({role: last.groups[g].members[role]})
        return any(
            not np.array_equal(
                read_piece(layout, only, handles, start, form)[role],
                self._reference_for(last).read(g, start, form)[role],
            )
            for start, form in last.pieces(last.groups[g])
        )

    def _reference_for(self, layout: Layout) -> Reference:
        if self._reference is None:
            near = self.settings.mode == "near"
            whole = [not (near and group.near) or blocks.is_table(layout.shape(group)) for group in layout.groups]
            self._reference = Reference(self.folder, layout, whole)
        return self._reference

    def _dictionaries(self) -> dict[str, bytes]:
        """Return the structure of each file in the key frame that the next step builds on."""
        chain = self.index.chain(len(self.index.entries) - 1)
        with Chain(self.folder, chain[:1]) as opened:
            layout = opened.layouts[0]
            found: dict[str, bytes] = {}
            for i, _, data in opened.skeletons(0):
                found.setdefault(layout.slot(layout.images[i]), data)
        return found


@contextmanager
def _opened(snapshot: Snapshot) -> Iterator[Sequence[BinaryIO]]:
    with ExitStack() as stack:
        yield [stack.enter_context(file.open("rb", buffering=0)) for file, _ in snapshot.files]


def _stamps(snapshot: Snapshot) -> list[tuple[int, int]]:
    return [(file.stat().st_size, file.stat().st_mtime_ns) for file, _ in snapshot.files]


def _digests_of_source(entry: Entry, layout: Layout, expected: Sequence[str]) -> dict[int, NDArray[np.uint64]]:
    """Return row digests of the checkpoint a step was packed from, if it is still there unchanged."""
    if not any(blocks.is_table(layout.shape(group)) for group in layout.groups):
        return {}
    root = Path(entry.source)
    paths = [root] if root.is_file() else [root / image.path for image in layout.images]
    if not all(path.is_file() for path in paths) or [files.sha256(path) for path in paths] != list(expected):
        return {}
    with ExitStack() as stack:
        return row_digests(layout, [stack.enter_context(path.open("rb", buffering=0)) for path in paths])


def _differences(there: PackSettings, asked: PackSettings) -> str:
    old, new = there.model_dump(), asked.model_dump()
    return ", ".join(f"{key} = {old[key]!r}" for key in old if old[key] != new[key])


def pack(
    snapshots: Sequence[Snapshot],
    folder: str | Path,
    settings: PackSettings | None = None,
    log: Log = SILENT,
    allow: Collection[str] = (),
) -> list[Packed]:
    """Pack checkpoints that are not in the archive yet, in order of step. See `Packer` and `missing` for the errors."""
    with Packer(folder, settings, log, allow=allow) as packer:
        return [packer.add(snapshot) for snapshot in packer.missing(snapshots)]
