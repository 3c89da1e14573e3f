"""Memory that is held, not estimated: distinct tensor storages, and the peak of a fresh process that loads and runs.

`PeakMeter` keeps one child process that has imported torch and nothing that starts threads. It forks for each artifact
while it has a single thread; the fork builds the task, forgets its high-water mark, loads the artifact, runs its probe,
serves it and reports the new mark, so that one measurement never inherits the memory of another. A process that has
threads must not fork (a lock that one of them holds stays locked for ever): it starts a fresh one instead.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lessen.errors import LessenError
from lessen.stored.base import StoredModule

SECONDS = 300
"""How long one measurement may take; then it is given up, and the figure is not measured."""
_DIES_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


@dataclass(frozen=True)
class Peak:
    """High-water mark of the resident set, in bytes."""

    peak_rss_bytes: int
    growth_bytes: int
    """Peak above what the process held before it opened the artifact: the model, its inputs and activations."""


def resident_bytes(model: nn.Module) -> int:
    """Return the bytes of all distinct storages behind parameters and buffers, plus what packed modules hold beside."""
    storages: dict[int, int] = {}
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    packed = sum(module.packed_bytes() for module in model.modules() if isinstance(module, StoredModule))
    return sum(storages.values()) + packed


class PeakMeter:
    """Measures peak memory of artifacts of one built-in task in children of a clean process."""

    def __init__(self, task: Mapping[str, Any], seconds: int = SECONDS) -> None:
        """Start the child process.

        Args:
            seconds: how long one measurement may take.
        """
        self._seconds = seconds
        self._child = subprocess.Popen(
            [sys.executable, "-m", "lessen.measure.memory", "serve", json.dumps(dict(task)), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **_ONE_THREAD},
        )

    def __enter__(self) -> PeakMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def measure(self, artifact: Path) -> Peak | None:
        """Return the peak of loading `artifact` and running its probe, or None when the child could not do it."""
        if self._child.stdin is None or self._child.stdout is None or self._child.poll() is not None:
            return None
        try:
            self._child.stdin.write(json.dumps(str(artifact)) + "\n")
            self._child.stdin.flush()
            answer = json.loads(self._answer() or "null")
        except (BrokenPipeError, ValueError):
            return None
        return Peak(**answer) if answer else None

    def close(self) -> None:
        """End the child process and what it is measuring."""
        with suppress(BrokenPipeError):
            if self._child.stdin is not None:
                self._child.stdin.close()
        try:
            self._child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()

    def _answer(self) -> str:
        """Return the next line of the child, or nothing when it takes too long; the child is ended then."""
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            # starting up and one measurement; the child gives up a little earlier by itself
            if not selector.select(timeout=2 * self._seconds + 30):
                self._child.kill()
                return ""
        return str(self._child.stdout.readline())


_ONE_THREAD = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "RAYON_NUM_THREADS": "1"}


def _status(field: str) -> int | None:
    """Return a figure of /proc/self/status, or None where there is no such file."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return None


def _high_water() -> int:
    kilobytes = _status("VmHWM")
    if kilobytes is not None:
        return kilobytes * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _forget_high_water() -> None:
    """Let the mark start from what is held now, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident_now() -> int:
    kilobytes = _status("VmRSS")
    return kilobytes * 1024 if kilobytes is not None else _high_water()


def _measure_here(task: Mapping[str, Any], artifact: Path) -> dict[str, int] | None:
    from lessen.artifact.folder import load, verify
    from lessen.stored.serving import serve
    from lessen.tasks import get_task

    try:
        get_task(task).build()  # its data are no part of the artifact
        _forget_high_water()
        before = _resident_now()
        verify(artifact)
        serve(load(artifact))
    except LessenError:
        return None
    peak = _high_water()
    return {"peak_rss_bytes": peak, "growth_bytes": max(0, peak - before)}


def _end_with_parent() -> None:
    """Let the system end this process when the one that started it ends, where it can."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)


def _single_threaded() -> bool:
    threads = _status("Threads")
    return threads == 1 if threads is not None else False


def _in_a_fork(task: Mapping[str, Any], artifact: Path, seconds: int) -> dict[str, int] | None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            signal.alarm(seconds)
            _end_with_parent()
            os.write(writer, json.dumps(_measure_here(task, artifact)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as handle:
        raw = handle.read()
    os.waitpid(child, 0)
    return json.loads(raw) if raw else None


def _in_a_process(task: Mapping[str, Any], artifact: Path, seconds: int) -> dict[str, int] | None:
    command = [sys.executable, "-m", "lessen.measure.memory", "once", json.dumps(dict(task)), str(artifact)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=seconds, check=False)
        found: dict[str, int] | None = json.loads(done.stdout or "null")
        return found
    except (subprocess.TimeoutExpired, ValueError):
        return None


def _serve(task: Mapping[str, Any], seconds: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and closes this process
    _end_with_parent()
    _prepare()
    for line in sys.stdin:
        measure = _in_a_fork if _single_threaded() else _in_a_process
        sys.stdout.write(json.dumps(measure(task, Path(json.loads(line)), seconds)) + "\n")
        sys.stdout.flush()


def _prepare() -> None:
    """Import what is no part of an artifact: torch, the stored classes, the compiler of the kernels."""
    import torch

    from lessen.stored.base import load_builtin_kinds
    from lessen.stored.kernels import machine
    from lessen.tasks import builtin_tasks

    torch.set_num_threads(1)
    load_builtin_kinds()
    machine.prepare()
    builtin_tasks()


def _once(task: Mapping[str, Any], artifact: Path) -> None:
    _end_with_parent()
    _prepare()
    sys.stdout.write(json.dumps(_measure_here(task, artifact)))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(json.loads(sys.argv[2]), int(sys.argv[3]))
    else:
        _once(json.loads(sys.argv[2]), Path(sys.argv[3]))
