"""Memory that is held, not estimated: distinct tensor storages, and the peak of a fresh process that loads and runs.

`PeakMeter` keeps one child process that has imported torch and built the task. For each artifact the child forks;
the fork loads the artifact, runs its probe and reports its own high-water mark, so that one measurement never
inherits the memory of another.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lessen.errors import LessenError
from lessen.stored.base import StoredModule


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
    """Measures peak memory of artifacts of one built-in task in forks of a clean child process."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "lessen.measure.memory", json.dumps(dict(task))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip

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
            answer = json.loads(self._child.stdout.readline() or "null")
        except (BrokenPipeError, ValueError):
            return None
        return Peak(**answer) if answer else None

    def close(self) -> None:
        """End the child process."""
        if self._child.stdin is not None:
            self._child.stdin.close()
        try:
            self._child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()


def _high_water() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _resident_now() -> int:
    fields = Path("/proc/self/statm").read_text().split() if Path("/proc/self/statm").exists() else []
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else _high_water()


def _measure_here(artifact: Path) -> dict[str, int] | None:
    from lessen.artifact.folder import verify

    before = _resident_now()
    try:
        verify(artifact)
    except LessenError:
        return None
    peak = _high_water()
    return {"peak_rss_bytes": peak, "growth_bytes": max(0, peak - before)}


def _fork_and_measure(artifact: Path) -> dict[str, int] | None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            os.write(writer, json.dumps(_measure_here(artifact)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as handle:
        raw = handle.read()
    os.waitpid(child, 0)
    return json.loads(raw) if raw else None


def _serve(task: Mapping[str, Any]) -> None:
    import torch

    from lessen.stored.base import load_builtin_kinds
    from lessen.stored.kernels import machine
    from lessen.tasks import get_task

    torch.set_num_threads(1)
    load_builtin_kinds()
    machine.prepare()  # the compiler is no part of an artifact
    get_task(task).build()  # reads the data once, before any fork
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_fork_and_measure(Path(json.loads(line)))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
