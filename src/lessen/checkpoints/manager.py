"""Packing while training goes on: full checkpoints first, packed by a process in the background, then removed.

    run/full/step-300.pt      the newest few, whole, ready for torch.load
    run/archive/              everything, packed

A full file appears under its name only when it is on disk, and is removed only when its step is in the archive, so a
kill at any moment leaves the newest complete state readable. What was not packed is packed by the next run.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lessen import files
from lessen.checkpoints.archive import Archive
from lessen.checkpoints.index import NAME
from lessen.checkpoints.pack import PackSettings
from lessen.checkpoints.packing_process import BackgroundPacker, tell
from lessen.checkpoints.states import load_state, whole_number, write_state
from lessen.errors import ArtifactError, ConfigError, DataError, LessenError
from lessen.log import SILENT, Log

_FULL = re.compile(r"step-(\d+)\.pt")


class CheckpointManager:
    """Saves, packs and resumes the states of a training loop.

    with CheckpointManager("run") as manager:
        state = manager.resume() or {...}
        ...
        manager.save(step, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    """

    def __init__(
        self, folder: str | Path, keep_full: int = 2, settings: PackSettings | None = None, log: Log = SILENT
    ) -> None:
        """Keep `keep_full` newest states whole under `folder`/full and all of them in `folder`/archive.

        Raises:
            ConfigError: `keep_full` is below 1.
        """
        self.keep_full = whole_number("keep_full", keep_full, 1, "the newest state must stay whole")
        self.folder, self.settings, self.log = Path(folder), settings, log
        self.full, self.archive = self.folder / "full", self.folder / "archive"
        self._packer: BackgroundPacker | None = None
        self._latest = -1

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except LessenError as failed:  # what ended the training is what must be seen
            tell(self.log, str(failed))

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write a state and queue it; returns when it is safely on disk and was loaded once.

        A state holds tensors, numbers (NumPy's too), strings, lists, dicts, and plain data such as paths and dates.

        Raises:
            ConfigError: `step` is no whole number from 0 on, is not the one the state tells, or comes before one that
                is there already, from which `resume` would go on.
            DataError: the state is no mapping, or holds an entry that `resume` could not read, by name.
            OutputError: the disk is full or unwritable; earlier states are untouched.
        """
        step = whole_number("step", step, 0, "resume finds states by it")
        if not isinstance(state, Mapping):
            raise DataError(f"a state is a mapping of names to values, not {type(state).__name__}: give a dict")
        if not _same(told := state.get("step", step), step):
            raise ConfigError(f"the state says step {told!r}, save was given {step}: name one step, or leave it out")
        path = self.full / f"step-{step}.pt"
        if self._packer is None or step < self._latest:
            self._check_order(step)
        if self._packer is None:
            files.remove_stale(self.full)  # by the one who writes here: a reader must not clean up behind it
        write_state(path, {**state, "step": step})
        self._latest = step
        self._queue(path)
        return path

    def _check_order(self, step: int) -> None:
        """Refuse a step of a run that went back: `resume` would return a later one."""
        whole = {number: path for number, path in self._whole().items() if number > step and _readable(path)}
        last = max([*whole, *self._packed()], default=step)
        if last > step:
            raise ConfigError(
                f"step {step} comes before step {last}, which {self.folder} holds and resume would return; to go on "
                f"from an earlier step: lessen checkpoint prune {shlex.quote(str(self.archive))} --keep-before {step}, "
                f"and move later files out of {self.full}"
            )

    def _queue(self, path: Path) -> None:
        if self._packer is None:
            self._packer = BackgroundPacker(self.archive, self.keep_full, self.settings, self.log)
            for _, left in sorted(self._whole().items()):
                if left != path:
                    self._packer.submit(left)
        self._packer.submit(path)

    def resume(self, step: int | None = None) -> dict[str, Any] | None:
        """Return the newest readable state, or that of `step`; None when there is none yet.

        Raises:
            ArtifactError: `step` is neither whole nor in the archive, the archive is damaged, or there are states and
                none of them is readable: to start anew then is for the user to say, by moving them away.
        """
        whole = self._whole()
        known = sorted(whole.keys() | self._packed(), reverse=True)
        for number in known if step is None else [step]:
            if number in whole:
                try:
                    return dict(load_state(whole[number]))
                except ArtifactError as error:
                    tell(self.log, f"{error}; taking it from the archive, or an older state")
            if number in self._packed():  # asked again: a packer that still works moves full states there
                return self._unpacked(Archive(self.archive), number)
        if step is not None:
            raise ArtifactError(f"{self.folder} holds no readable step {step}")
        if known:
            raise ArtifactError(
                f"none of the states in {self.full} can be read; move the folder away to start from the beginning"
            )
        return None

    def _whole(self) -> dict[int, Path]:
        found = {path: _FULL.fullmatch(path.name) for path in (self.full.iterdir() if self.full.is_dir() else ())}
        return {int(match[1]): path for path, match in found.items() if match}

    def _packed(self) -> set[int]:
        return set(Archive(self.archive).steps) if (self.archive / NAME).exists() else set()

    def _unpacked(self, archive: Archive, step: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="lessen-resume-") as scratch:
            out = archive.unpack(step, Path(scratch) / "state", self.log)
            return dict(load_state(next(out.iterdir())))

    def close(self) -> None:
        """Wait for the packer. Raises OutputError if it failed."""
        packer, self._packer = self._packer, None
        if packer is not None:
            packer.close()


def _readable(path: Path) -> bool:
    try:
        load_state(path, mapped=True)
    except ArtifactError:
        return False
    return True


def _same(told: Any, step: int) -> bool:
    try:
        return bool(told == step)
    except (RuntimeError, ValueError):  # an array of several numbers
        return False
