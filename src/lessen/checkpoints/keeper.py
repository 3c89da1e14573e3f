"""Packing while training goes on: full checkpoints first, packed by a process in the background, then removed.

    run/full/step-300.pt      the newest few, whole, ready for torch.load
    run/archive/              everything, packed

A full file appears under its name only when it is on disk, and is removed only when its step is in the archive, so a
kill at any moment leaves the newest complete state readable. What was not packed is packed by the next run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lessen import files
from lessen.checkpoints.archive import Archive
from lessen.checkpoints.images import load_tree
from lessen.checkpoints.index import NAME
from lessen.checkpoints.pack import PackSettings
from lessen.errors import ArtifactError, ConfigError, OutputError
from lessen.log import SILENT, Log


class BackgroundPacker:
    """A process of low priority that packs the checkpoints it is told about, in order."""

    def __init__(self, archive: Path, keep_full: int, settings: PackSettings | None = None, log: Log = SILENT) -> None:
        """Start the process; `keep_full` counts the newest checkpoints that stay whole."""
        self.log = log
        self._report = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        command = [sys.executable, "-m", "lessen.checkpoints.background", str(archive), str(keep_full)]
        if settings is not None:
            command.append(settings.model_dump_json())
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self._report, env=environment)

    def submit(self, checkpoint: Path) -> None:
        """Queue one complete checkpoint. A packer that failed is mentioned in the log; training goes on."""
        pipe = self._process.stdin
        try:
            if pipe is None:
                raise BrokenPipeError
            pipe.write(json.dumps(str(checkpoint.absolute())).encode() + b"\n")
            pipe.flush()
        except (BrokenPipeError, ValueError):
            self.log.note(f"checkpoints are no longer packed: {self._said()}; full files are kept")

    def close(self) -> None:
        """Wait until everything submitted is packed. Raises OutputError with what the process said if it failed."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        if self._process.wait() != 0:
            raise OutputError(f"packing in the background failed: {self._said()}; full checkpoints are kept")

    def _said(self) -> str:
        self._report.seek(0)
        lines = self._report.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the process ended with status {self._process.poll()}"


class CheckpointKeeper:
    """Saves, packs and resumes the states of a training loop.

    with CheckpointKeeper("run") as keeper:
        state = keeper.resume() or {...}
        ...
        keeper.save(step, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    """

    def __init__(
        self, folder: str | Path, keep_full: int = 2, settings: PackSettings | None = None, log: Log = SILENT
    ) -> None:
        """Keep `keep_full` newest states whole under `folder`/full and all of them in `folder`/archive.

        Raises:
            ConfigError: `keep_full` is below 1.
        """
        if keep_full < 1:
            raise ConfigError(
                f"keep_full = {keep_full} is not accepted: the newest state must stay whole, so at least 1"
            )
        self.folder, self.keep_full, self.settings, self.log = Path(folder), keep_full, settings, log
        self.full, self.archive = self.folder / "full", self.folder / "archive"
        self._packer: BackgroundPacker | None = None
        with files.writing(self.full):
            self.full.mkdir(parents=True, exist_ok=True)
        files.remove_stale(self.full)

    def __enter__(self) -> CheckpointKeeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a state (tensors, numbers, strings, lists, dicts) and queue it; returns when it is safely on disk.

        Raises:
            OutputError: the disk is full or unwritable; earlier states are untouched.
        """
        path = self.full / f"step-{step}.pt"
        with files.atomic_stream(path) as handle:
            torch.save({"step": step, **state}, handle)
        self._queue(path)
        return path

    def _queue(self, path: Path) -> None:
        if self._packer is None:
            self._packer = BackgroundPacker(self.archive, self.keep_full, self.settings, self.log)
            for left in sorted(self.full.glob("step-*.pt"), key=_step_of)[:-1]:
                self._packer.submit(left)
        self._packer.submit(path)

    def resume(self, step: int | None = None) -> dict[str, Any] | None:
        """Return the newest readable state, or that of `step`; None when there is none yet.

        Raises:
            ArtifactError: `step` is neither whole nor in the archive, or the archive is damaged.
        """
        whole = {_step_of(path): path for path in self.full.glob("step-*.pt")}
        for number in sorted(whole.keys() | self._packed(), reverse=True) if step is None else [step]:
            if number in whole:
                try:
                    return dict(load_tree(whole[number], mapped=False))
                except ArtifactError as error:
                    self.log.note(f"{error}; taking it from the archive, or an older state")
            if number in self._packed():  # asked again: a packer that still works moves full states there
                return self._unpacked(Archive(self.archive), number)
        if step is not None:
            raise ArtifactError(f"{self.folder} holds no readable step {step}")
        return None

    def _packed(self) -> set[int]:
        return set(Archive(self.archive).steps) if (self.archive / NAME).exists() else set()

    def _unpacked(self, archive: Archive, step: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="lessen-resume-") as scratch:
            out = archive.unpack(step, Path(scratch) / "state", self.log)
            return dict(load_tree(next(out.iterdir()), mapped=False))

    def close(self) -> None:
        """Wait for the packer. Raises OutputError if it failed."""
        packer, self._packer = self._packer, None
        if packer is not None:
            packer.close()


def _step_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
