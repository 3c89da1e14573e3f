"""Writing an archive: one checkpoint after another, piece by piece, in bounded memory.

checkpoint files --byte maps--> arrays --groups--> pieces --near | exact--> blocks --> frame --> index
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
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lessen import files
from lessen.checkpoints import blocks
from lessen.checkpoints.archive import Chain
from lessen.checkpoints.building import FrameBuilder, note_digests, read_piece
from lessen.checkpoints.byte_map import ByteMap, read_byte_map
from lessen.checkpoints.frames import Frame, writing_frame
from lessen.checkpoints.groups import FLOATS, Group, find_groups
from lessen.checkpoints.index import NAME, Entry, Index, is_frame, one_writer, read_index, write_index
from lessen.checkpoints.layout import Layout, require_same_series
from lessen.checkpoints.movement import Moved
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
        maps, snapshot = self._read_maps(snapshot)
        name = f"step-{snapshot.step:09d}.frame"
        try:
            stamps = _stamps(snapshot)
            with _opened(snapshot) as handles:
                layout, key = self._prepare(maps, snapshot, handles)
                with writing_frame(self.folder / name) as writer:
                    tick = partial(self.log.progress, f"packing step {snapshot.step}")
                    near = self.settings.near if self.settings.mode == "near" else None
                    first = not self.index.entries
                    builder = FrameBuilder(layout, handles, self._reference_for(layout), key, near, first)
                    footer = builder.write(writer, {} if key else self._dictionaries(), tick)
                    if _stamps(snapshot) != stamps:
                        raise DataError(
                            f"{snapshot.source} changed while it was being packed; pack it when it is complete"
                        )
                    digest = writer.finish({"step": snapshot.step, **footer})
            raw = sum(mapped.size for mapped in layout.maps)
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

    def _read_maps(self, snapshot: Snapshot) -> tuple[tuple[ByteMap, ...], Snapshot]:
        """Return the files of a checkpoint, those that hold arrays first, and the checkpoint in that order."""
        read = [
            (read_byte_map(file, path, snapshot.must_load(file, path), self._allow), (file, path))
            for file, path in snapshot.files
        ]
        read.sort(key=lambda pair: not pair[0].arrays)
        maps = tuple(mapped for mapped, _ in read)
        if not any(mapped.arrays for mapped in maps):
            raise DataError(f"{snapshot.source} holds no tensors; nothing to pack")
        return maps, replace(snapshot, files=tuple(pair for _, pair in read))

    def _grouped(self, maps: tuple[ByteMap, ...], movement: Moved | None) -> Layout:
        if self.settings.mode == "exact":
            groups = find_groups(maps, movement=movement)
            return Layout(maps, tuple(replace(group, near=False) for group in groups))
        return Layout(maps, tuple(find_groups(maps, self.settings.weights_only, movement)))

    def _prepare(
        self, maps: tuple[ByteMap, ...], snapshot: Snapshot, handles: Sequence[BinaryIO]
    ) -> tuple[Layout, bool]:
        """Group the arrays, load the step before as reference if they can build on it; say whether to start anew."""
        if not self.index.entries:
            layout = self._grouped(maps, None)
            self._require_weights(layout, snapshot)
            return layout, True
        chain = self.index.chain(len(self.index.entries) - 1)
        with Chain(self.folder, chain) as opened:
            last, footer = opened.layouts[-1], opened.frames[-1].footer
            layout = self._grouped(maps, Moved(maps, handles, last, footer))
            self._require_weights(layout, snapshot)
            require_same_series(last, chain[-1].step, layout, snapshot.step)
            key = len(chain) >= self.settings.key_every or last.signature() != layout.signature()
            if self._reference is None and not key:
                self._reference_for(last).load(opened, self.log)
                _note_source(chain[-1], last, footer["sha256"], self._reference_for(last))
        if not key and self._is_elsewhere(layout, handles):
            self.log.note(
                f"step {snapshot.step} ({snapshot.source}) does not continue step {chain[-1].step}: its weights differ "
                "by more than they measure. Are two runs in one folder? It is packed as a key frame, on its own"
            )
            key = True
        if key:
            self._forget()
        return layout, key

    def _is_elsewhere(self, layout: Layout, handles: Sequence[BinaryIO]) -> bool:
        """Say whether the weights are as far from those of the step before as weights of another run are.

        Looks at the first piece of every weight; weights that were zero do not count.
        """
        far, size = 0.0, 0.0
        for g, group in enumerate(layout.groups):
            if "weight" not in group.members or layout.array(group.members["weight"]).kind not in FLOATS:
                continue
            for start, form in layout.pieces(group)[:1]:
                only = Group({"weight": group.members["weight"]})
                now = blocks.values_of(read_piece(layout, only, handles, start, form)["weight"], "weight", form)
                before = blocks.values_of(self._reference_for(layout).read(g, start, form)["weight"], "weight", form)
                if before.any():
                    far += float(np.square(now - before, dtype=np.float64).sum())
                    size += float(np.square(now, dtype=np.float64).sum())
        return far >= size > 0

    def _require_weights(self, layout: Layout, snapshot: Snapshot) -> None:
        """Refuse what mode near cannot make smaller. Raises DataError."""
        if self.settings.mode == "exact" or self.settings.weights_only or layout.has_weights():
            return
        state = "state of an optimiser that is not known here" if layout.has_optimizer() else "no optimiser moments"
        raise DataError(
            f"{snapshot.source} has {state} beside its weights, so that nothing tells mode near what training moves; "
            "pack full checkpoints, choose mode exact, or weights_only to let weights alone lose precision"
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
                found.setdefault(layout.slot(layout.maps[i]), data)
        return found


@contextmanager
def _opened(snapshot: Snapshot) -> Iterator[Sequence[BinaryIO]]:
    with ExitStack() as stack:
        yield [stack.enter_context(file.open("rb", buffering=0)) for file, _ in snapshot.files]


def _stamps(snapshot: Snapshot) -> list[tuple[int, int]]:
    return [(file.stat().st_size, file.stat().st_mtime_ns) for file, _ in snapshot.files]


def _note_source(entry: Entry, layout: Layout, expected: Sequence[str], reference: Reference) -> None:
    """Tell `reference` the rows of the checkpoint a step was packed from, if it is still there unchanged."""
    if not any(blocks.is_table(layout.shape(group)) for group in layout.groups):
        return
    root = Path(entry.source)
    paths = [root] if root.is_file() else [root / mapped.path for mapped in layout.maps]
    if not all(path.is_file() for path in paths) or [files.sha256(path) for path in paths] != list(expected):
        return
    with ExitStack() as stack:
        note_digests(layout, [stack.enter_context(path.open("rb", buffering=0)) for path in paths], reference)


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
