"""Reading an archive: any step, any tensor, verification and pruning.

archive/
  index.json                steps, their files, SHA-256 of each footer; replaced in one step
  step-000000040.frame      key frame: builds on nothing
  step-000000080.frame      builds on the frame before it ...
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lessen import files
from lessen.checkpoints import coder
from lessen.checkpoints.blocks import Form, Piece, decode_piece, needed_before
from lessen.checkpoints.byte_map import Array
from lessen.checkpoints.dtypes import torch_dtype
from lessen.checkpoints.frames import Frame
from lessen.checkpoints.groups import Place
from lessen.checkpoints.index import Entry, Index, one_writer, read_index, write_index
from lessen.checkpoints.layout import read_layout
from lessen.checkpoints.near import Need
from lessen.errors import ArtifactError, InputError
from lessen.log import SILENT, Log


class Chain:
    """The frames from a key frame up to a step, opened together."""

    def __init__(self, folder: Path, entries: Sequence[Entry]) -> None:
        """Open every frame. Raises ArtifactError if one is absent or damaged."""
        self.entries = list(entries)
        self.frames: list[Frame] = []
        self._forms: dict[tuple[int, int], list[tuple[int, Form]]] = {}
        try:
            for entry in entries:
                self.frames.append(Frame(folder / entry.file, entry.digest))
            self.layouts = [read_layout(frame.footer, str(frame.path)) for frame in self.frames]
        except BaseException:
            self.close()
            raise
        shapes = [[layout.shape(group) for group in layout.groups] for layout in self.layouts]
        if any(other != shapes[0] for other in shapes):
            self.close()
            raise ArtifactError(f"the frames of {folder} do not belong together; restore the archive from a copy")

    def close(self) -> None:
        """Close every frame."""
        for frame in self.frames:
            frame.close()

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rebuild(self, group: int, piece: int, wanted: Collection[int]) -> Iterator[tuple[int, Piece]]:
        """Decode one piece along the chain and yield (position, piece) for the positions in `wanted`.

        Decoding begins at the last step that builds on nothing. Moments of steps that are only passed through are not
        decoded unless a later step builds on them.
        """
        places = [self._place(k, group, piece) for k in range(max(wanted) + 1)]
        needs: list[Need | None] = [Need.ALL if k in wanted else None for k in range(len(places))]
        for k in range(len(places) - 1, 0, -1):
            need = needs[k]
            before = None if need is None else needed_before(places[k][0], need)
            needs[k - 1] = max((n for n in (needs[k - 1], before) if n is not None), default=None)
        state: Piece | None = None
        for k, (flags, block) in enumerate(places):
            need = needs[k]
            if need is None:
                state = None
                continue
            layout = self.layouts[k]
            what = f"tensor {layout.title(layout.groups[group])!r} of step {self.entries[k].step}"
            blob = self.frames[k].read(block, what)
            form = self._pieces(k, group)[piece][1]
            try:
                state = decode_piece(flags, blob, state, form, need)
            except Exception as error:  # whatever bytes that are none of ours lead to
                raise ArtifactError(f"{what} is damaged: {error}; nothing was loaded") from error
            if k in wanted:
                yield k, state

    def _pieces(self, position: int, group: int) -> list[tuple[int, Form]]:
        if (position, group) not in self._forms:
            layout = self.layouts[position]
            self._forms[position, group] = layout.pieces(layout.groups[group])
        return self._forms[position, group]

    def _place(self, position: int, group: int, piece: int) -> tuple[int, list[int]]:
        flags, offset, length, checksum = self.frames[position].footer["pieces"][group][piece]
        return flags, [offset, length, checksum]

    def skeletons(self, position: int) -> Iterator[tuple[int, list[tuple[int, int]], bytes]]:
        """Yield (index of the file, ranges, bytes) for the parts of the files that are no arrays."""
        for i in range(len(self.layouts[position].maps)):
            for part, ranges in enumerate(self.layouts[position].skeleton(i)):
                size = sum(length for _, length in ranges)
                yield i, ranges, self._skeleton(position, i, part, size)

    def loose(self, position: int, number: int, array: Array) -> bytearray:
        """Return the bytes of an array that is part of the structure of its file."""
        data = bytearray(array.nbytes)
        for part, ranges in enumerate(self.layouts[position].skeleton(number)):
            first, last = ranges[0][0], sum(ranges[-1])
            if first >= array.offset + array.nbytes or last <= array.offset:
                continue
            whole, at = self._skeleton(position, number, part, sum(length for _, length in ranges)), 0
            for offset, length in ranges:
                begin, end = max(offset, array.offset), min(offset + length, array.offset + array.nbytes)
                if begin < end:
                    data[begin - array.offset : end - array.offset] = whole[at + begin - offset : at + end - offset]
                at += length
        return data

    def _skeleton(self, position: int, number: int, part: int, size: int) -> bytes:
        frame, layout = self.frames[position], self.layouts[position]
        what = f"the structure of file {layout.maps[number].path!r} of step {self.entries[position].step}"
        blob = frame.read(frame.footer["skeletons"][number][part], what)
        return coder.decompress(blob, size, self.dictionary(position, number, part))

    def dictionary(self, position: int, number: int, part: int) -> bytes:
        """Return what the structure of a file was coded against: that of the same file in the key frame."""
        if position == 0 or part:
            return b""
        now, first_layout = self.layouts[position], self.layouts[0]
        for i, known in enumerate(first_layout.maps):
            if (
                first_layout.slot(known) == now.slot(now.maps[number])
                and (first := next(first_layout.skeleton(i), None)) is not None
            ):
                return self._skeleton(0, i, 0, sum(length for _, length in first))
        return b""


class Archive:
    """A series of checkpoints on disk. Open it, list its steps, take any of them out.

    Raises:
        ArtifactError: no archive, damaged, or written by a release that this one cannot read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index: Index = read_index(self.folder)

    @property
    def entries(self) -> list[Entry]:
        """The steps that can be taken out, in order."""
        return [entry for entry in self.index.entries if entry.listed]

    @property
    def steps(self) -> list[int]:
        """The numbers of those steps."""
        return [entry.step for entry in self.entries]

    @property
    def mode(self) -> str:
        """`exact` or `near`."""
        return str(self.index.settings["mode"])

    @contextmanager
    def chain(self, step: int) -> Iterator[Chain]:
        """Open the frames that `step` needs. Raises ArtifactError."""
        with Chain(self.folder, self.index.chain(self.index.find(step))) as chain:
            yield chain

    # -- taking steps out ----------------------------------------------------------------------------------------
    def unpack(self, step: int, out: str | Path, log: Log = SILENT) -> Path:
        """Write the files of a step into the folder `out`, which appears only when all of it is right.

        Raises:
            ArtifactError: no such step, or damage (naming the tensor).
            OutputError: `out` exists and is not empty, or cannot be written.
        """
        target = Path(out)
        with self.chain(step) as chain, files.atomic_folder(target) as temporary:
            last = len(chain.frames) - 1
            self._rebuild_files(chain, {last: temporary}, log)
        return target

    def unpack_all(self, out: str | Path, log: Log = SILENT) -> list[Path]:
        """Write every listed step into `out/step-N`, decoding each frame once."""
        target = Path(out)
        with files.atomic_folder(target) as temporary:
            for entries in self._runs():
                with Chain(self.folder, entries) as chain:
                    wanted = {k: temporary / f"step-{entry.step}" for k, entry in enumerate(entries) if entry.listed}
                    self._rebuild_files(chain, wanted, log)
        return [target / f"step-{step}" for step in self.steps]

    def _runs(self) -> Iterator[list[Entry]]:
        """Yield the entries of each key frame and what builds on it."""
        run: list[Entry] = []
        for entry in self.index.entries:
            if entry.key and run:
                yield run
                run = []
            run.append(entry)
        if run:
            yield run

    def _rebuild_files(self, chain: Chain, folders: dict[int, Path], log: Log) -> None:
        with ExitStack() as stack:
            writers = {k: stack.enter_context(StepWriter(chain, k, folder)) for k, folder in folders.items()}
            groups = chain.layouts[0].groups
            for g, group in enumerate(groups):
                for p, (start, _) in enumerate(chain.layouts[0].pieces(group)):
                    for k, piece in chain.rebuild(g, p, set(folders)):
                        writers[k].write_piece(g, start, piece)
                log.progress("unpacking", g + 1, len(groups))
            for writer in writers.values():
                writer.finish()

    def tensor(self, step: int, name: str) -> Tensor:
        """Return one tensor of a step by its name, such as `model/head.weight`, decoding nothing else.

        Raises:
            ArtifactError: no such step or tensor, or damage.
        """
        with self.chain(step) as chain:
            layout = chain.layouts[-1]
            for g, group in enumerate(layout.groups):
                for role, place in group.members.items():
                    if layout.array(place).name == name:
                        return _tensor(chain, g, role, place)
            for i, mapped in enumerate(layout.maps):
                for array in mapped.arrays:
                    if array.name == name:  # small or loose: part of the structure of its file
                        return _as_tensor(chain.loose(len(chain.frames) - 1, i, array), array)
            names = [array.name for mapped in layout.maps for array in mapped.arrays]
        raise ArtifactError(f"step {step} has no tensor {name!r}; it has {', '.join(names[:8])} ...")

    # -- looking after the archive ---------------------------------------------------------------------------------
    def verify(self, log: Log = SILENT) -> list[str]:
        """Decode everything and return what is wrong, one sentence each; empty when all steps are whole."""
        problems: list[str] = []
        for entries in self._runs():
            try:
                with Chain(self.folder, entries) as chain:
                    problems += _problems(chain, log)
            except ArtifactError as error:
                problems.append(str(error))
        return problems

    def prune(self, keep: Collection[int]) -> int:
        """Forget every step that is not in `keep`; return the bytes freed.

        A frame that a kept step builds on stays on disk, unlisted, until no kept step needs it.

        Raises:
            ArtifactError: `keep` names a step that is not there.
            InputError: `keep` is empty.
            OutputError: another process writes to the archive.
        """
        if not keep:
            raise InputError("prune would remove every step; name at least one to keep, or delete the folder")
        with one_writer(self.folder):
            self.index = read_index(self.folder)
            positions = {self.index.find(step) for step in keep}
            needed = {entry.step for position in positions for entry in self.index.chain(position)}
            gone = [entry for entry in self.index.entries if entry.step not in needed]
            dropped = [entry.step for k, entry in enumerate(self.index.entries) if entry.listed and k not in positions]
            self.index.pruned = sorted({*(self.index.pruned or ()), *dropped})
            self.index.entries = [
                replace(entry, listed=k in positions)
                for k, entry in enumerate(self.index.entries)
                if entry.step in needed
            ]
            write_index(self.folder, self.index)
            for entry in gone:
                (self.folder / entry.file).unlink(missing_ok=True)
        return sum(entry.bytes for entry in gone)


def _tensor(chain: Chain, group: int, role: str, place: Place) -> Tensor:
    last = len(chain.frames) - 1
    layout = chain.layouts[last]
    array = layout.array(place)
    words = [
        piece[role]
        for p in range(len(layout.pieces(layout.groups[group])))
        for _, piece in chain.rebuild(group, p, {last})
    ]
    data = bytearray(np.concatenate(words).tobytes())
    if zlib.crc32(data) != chain.frames[last].footer["sums"][place[0]][place[1]]:
        raise ArtifactError(f"tensor {array.name!r} of step {chain.entries[last].step} is not what was packed")
    return _as_tensor(data, array)


def _as_tensor(data: bytearray, array: Array) -> Tensor:
    return torch.frombuffer(data, dtype=torch_dtype(array.kind)).reshape(array.shape)


def _problems(chain: Chain, log: Log) -> list[str]:
    """Decode all pieces of a chain, keeping going after damage, and say which tensors of which steps are lost."""
    problems: dict[str, None] = {}
    layout = chain.layouts[0]
    for g, group in enumerate(layout.groups):
        sums: dict[tuple[int, str], int] = {}
        try:
            for p in range(len(layout.pieces(group))):
                for k, piece in chain.rebuild(g, p, set(range(len(chain.frames)))):
                    for role, words in piece.items():
                        sums[k, role] = zlib.crc32(words.data, sums.get((k, role), 0))
        except ArtifactError as error:
            problems[str(error)] = None
            continue
        for (k, role), value in sums.items():
            i, j = chain.layouts[k].groups[g].members[role]
            if chain.frames[k].footer["sums"][i][j] != value:
                name = chain.layouts[k].maps[i].arrays[j].name
                problems[f"tensor {name!r} of step {chain.entries[k].step} is not what was packed"] = None
        log.progress("verifying", g + 1, len(layout.groups))
    for k in range(len(chain.frames)):
        try:
            for _ in chain.skeletons(k):
                pass
        except ArtifactError as error:
            problems[str(error)] = None
    return list(problems)


class StepWriter:
    """Writes the files of one step piece by piece, and checks them at the end."""

    def __init__(self, chain: Chain, position: int, folder: Path) -> None:
        self.layout, self.footer = chain.layouts[position], chain.frames[position].footer
        self.step = chain.entries[position].step
        self.paths = [folder / mapped.path for mapped in self.layout.maps]
        self.sums: dict[Place, int] = {}
        self._handles: list[Any] = []
        for path, mapped in zip(self.paths, self.layout.maps, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("xb")
            self._handles.append(handle)
            handle.truncate(mapped.size)
        for i, ranges, data in chain.skeletons(position):
            at = 0
            for offset, length in ranges:
                self._write(i, offset, data[at : at + length])
                at += length

    def __enter__(self) -> StepWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.close()

    def _write(self, number: int, offset: int, data: Any) -> None:
        view = memoryview(data).cast("B")
        while view:
            written = os.pwrite(self._handles[number].fileno(), view, offset)
            view, offset = view[written:], offset + written

    def write_piece(self, group: int, start: int, piece: Piece) -> None:
        """Put a rebuilt piece where it belongs; pieces of an array must come in order."""
        for role, place in self.layout.groups[group].members.items():
            words = np.ascontiguousarray(piece[role])
            self.sums[place] = zlib.crc32(words.data, self.sums.get(place, 0))
            self._write(place[0], self.layout.array(place).offset + start * words.itemsize, words)

    def finish(self) -> None:
        """Flush, and compare every array (and in exact mode every file) with what was packed. Raises ArtifactError."""
        for i, mapped in enumerate(self.layout.maps):
            for j, array in enumerate(mapped.arrays):
                if j in self.layout.coded[i] and self.sums.get((i, j)) != self.footer["sums"][i][j]:
                    raise ArtifactError(f"tensor {array.name!r} of step {self.step} is not what was packed")
            handle = self._handles[i]
            files.FILES.sync(handle)
            if self.footer["mode"] == "exact" and files.sha256(self.paths[i]) != self.footer["sha256"][i]:
                raise ArtifactError(f"file {mapped.path!r} of step {self.step} is not what was packed: SHA-256 differs")
