"""Starts the packing process, hands it checkpoints, and tells of what could not be packed as soon as it is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from lessen.checkpoints.pack import PackSettings
from lessen.errors import LessenError, OutputError
from lessen.log import SILENT, Log

_RESTARTS = 3


def tell(log: Log, text: str) -> None:
    """Say one line where a user sees it: in the log, or as a warning where there is none."""
    if log is SILENT:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    else:
        log.note(text)


class BackgroundPacker:
    """A process of low priority that packs the checkpoints it is told about, in order, and then removes them.

    What is submitted is the packer's: the newest `keep_full` stay whole. A checkpoint that cannot be packed stays too,
    and is told of at the next `submit`. A process that was killed is started again.
    """

    def __init__(self, archive: Path, keep_full: int, settings: PackSettings | None = None, log: Log = SILENT) -> None:
        """Start the process; `keep_full` counts the newest checkpoints that stay whole."""
        self.log = log
        self._command = [sys.executable, "-m", "lessen.checkpoints.background", str(archive), str(keep_full)]
        if settings is not None:
            self._command.append(settings.model_dump_json())
        self._submitted: list[Path] = []
        self._restarts, self._over = 0, False
        self._start()

    def _start(self) -> None:
        self._report = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._told = 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stderr=self._report, env=environment)

    def submit(self, checkpoint: Path) -> None:
        """Queue one complete checkpoint, and tell of earlier ones that were not packed; training goes on."""
        self._submitted = [path for path in self._submitted if path.exists()] + [checkpoint.absolute()]
        if self._over or not self._write(checkpoint.absolute()):
            self._revive()
        for text in self._news():
            tell(self.log, f"packing in the background: {text}")

    def _write(self, checkpoint: Path) -> bool:
        pipe = self._process.stdin
        if pipe is None or self._process.poll() is not None:
            return False
        try:
            pipe.write(json.dumps(str(checkpoint)).encode() + b"\n")
            pipe.flush()
        except (BrokenPipeError, ValueError):
            return False
        return True

    def _revive(self) -> None:
        """Start a process that was killed once more; one that ended by itself said why, and would again."""
        if self._over:
            return
        status = self._process.wait()
        if status == LessenError.exit_status or self._restarts == _RESTARTS:
            self._over = True
            tell(self.log, f"checkpoints are no longer packed: {self._said()}; full files are kept")
            return
        tell(self.log, f"the packing process ended ({self._said()}) and is started again")
        self._restarts += 1
        self._start()
        for path in self._submitted:
            self._write(path)

    def close(self) -> None:
        """Wait until everything submitted is packed. Raises OutputError with what the process said if it failed."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        if self._process.wait() != 0:
            raise OutputError(f"packing in the background failed: {self._said()}; full checkpoints are kept")

    def _lines(self) -> list[str]:
        # by position: reading must not move the offset that the process writes at
        report = os.pread(self._report.fileno(), os.fstat(self._report.fileno()).st_size, 0)
        return report.decode(errors="replace").splitlines(keepends=True)

    def _news(self) -> list[str]:
        """Return the complete lines said since the last call."""
        lines = [line.strip() for line in self._lines() if line.endswith("\n")]
        told, self._told = self._told, len(lines)
        return [line for line in lines[told:] if line]

    def _said(self) -> str:
        lines = [line.strip() for line in self._lines() if line.strip()]
        if any(line.startswith("Traceback") for line in lines):
            lines = lines[-1:]
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        return f"{lines[0]}{more}" if lines else f"the process ended with status {self._process.poll()}"
