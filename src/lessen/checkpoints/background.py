"""The process behind BackgroundPacker: reads one JSON path a line, packs it, removes what was packed and may go.

python -m lessen.checkpoints.background ARCHIVE KEEP_FULL [SETTINGS_JSON] < paths

What is submitted belongs to the packer (files of a manager, second names of a trainer's folders): it is removed once it
is in the archive and KEEP_FULL newer ones are. A checkpoint that cannot be packed is said on standard error, one line,
and stays; the others go on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import deque
from pathlib import Path

from lessen.checkpoints.pack import Packer, PackSettings
from lessen.checkpoints.sources import find_snapshots
from lessen.checkpoints.steps import step_in_name
from lessen.errors import DataError, LessenError, OutputError
from lessen.log import Log

_PATIENCE = 600.0
"""Seconds to wait for the packer of a run that was killed: it may be packing what that run left."""


class _Spoken(Log):
    """Says remarks on standard error, for the process that started this one."""

    def note(self, text: str) -> None:
        _say(text)


class Worker:
    """Packs checkpoints in the order given and keeps count of what may be removed."""

    def __init__(self, packer: Packer, keep_full: int) -> None:
        """Pack with `packer`; the newest `keep_full` packed checkpoints stay whole."""
        self.packer, self.keep_full, self.failed = packer, keep_full, False
        self._queue: deque[Path] = deque()
        self._whole: list[Path] = []

    def take(self, checkpoint: Path) -> None:
        """Pack `checkpoint` after whatever a full disk held up."""
        self._queue.append(checkpoint)
        while self._queue:
            try:
                self._pack(self._queue[0])
            except OutputError as error:  # there may be room again when the next one comes
                _say(f"{self._queue[0].name} waits to be packed: {error}")
                return
            except LessenError as error:
                self._give_up(str(error))
            except Exception as error:  # whatever else is wrong with one checkpoint, the next ones are packed
                self._give_up(f"{type(error).__name__}: {error}")
            self._queue.popleft()

    def finish(self) -> bool:
        """Say whether everything was packed."""
        return not self.failed and not self._queue

    def _give_up(self, reason: str) -> None:
        _say(f"{self._queue[0].name} is not packed: {reason}; the full checkpoint is kept")
        self.failed = True

    def _pack(self, checkpoint: Path) -> None:
        if not checkpoint.exists():
            # the packer of a killed run worked on, and packed and removed it, when it was submitted here
            if step_in_name(checkpoint.name) not in {entry.step for entry in self.packer.index.entries}:
                raise DataError(f"{checkpoint} is gone, and the archive does not hold it")
            return
        for snapshot in find_snapshots([checkpoint]):
            if not self.packer.holds(snapshot):  # a run that was killed submits its last files again
                self.packer.add(snapshot)
        self._whole.append(checkpoint)
        while len(self._whole) > self.keep_full:
            remove(self._whole.pop(0))


def main(archive: str, keep_full: str, settings: str | None = None) -> int:
    """Pack until standard input ends; return the exit status."""
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training; this ends when its input does
    asked = PackSettings.model_validate_json(settings) if settings is not None else None
    try:
        with Packer(archive, asked, _Spoken(), patience=_PATIENCE) as packer:
            worker = Worker(packer, int(keep_full))
            for line in sys.stdin:
                worker.take(Path(json.loads(line)))
            return 0 if worker.finish() else LessenError.exit_status
    except LessenError as error:
        _say(str(error))
        return error.exit_status


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def remove(checkpoint: Path) -> None:
    """Remove a full checkpoint, file or folder, whose step is packed."""
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint, ignore_errors=True)
    else:
        checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
