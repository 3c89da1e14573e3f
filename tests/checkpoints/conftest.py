from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("zstandard", reason="the [checkpoints] extra is not installed")
pytest.importorskip("constriction", reason="the [checkpoints] extra is not installed")

from checkpoint_runs import make_run
from lessen.checkpoints import PackSettings, background, find_snapshots, pack


class ForkedPacker:
    """What BackgroundPacker uses of Popen, as a fork of this process: a fresh one would first import torch.

    Tests of how the process starts, fails, waits for another's lock and dies use the real one.
    """

    def __init__(self, command, stdin, stderr, env):
        reading, writing = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            status = 1
            try:
                os.close(writing)
                os.dup2(stderr.fileno(), 2)
                sys.stdin, sys.stderr = os.fdopen(reading), os.fdopen(2, "w")
                status = background.main(*command[3:])
            finally:
                os._exit(status)
        os.close(reading)
        self.stdin, self._status = os.fdopen(writing, "wb"), None

    def poll(self):
        return self._ended(os.WNOHANG)

    def wait(self):
        return self._ended(0)

    def _ended(self, how):
        if self._status is None:
            process, status = os.waitpid(self._process, how)
            self._status = os.waitstatus_to_exitcode(status) if process else None
        return self._status


@pytest.fixture
def forked(monkeypatch):
    monkeypatch.setattr("lessen.checkpoints.packing_process.subprocess.Popen", ForkedPacker)


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> list[Path]:
    """Five checkpoints of one small run with Adam."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def archives(run, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    for mode in ("exact", "near"):
        pack(find_snapshots(run), folder / mode, PackSettings(mode=mode, key_every=3))
    return {mode: folder / mode for mode in ("exact", "near")}
