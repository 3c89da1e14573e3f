"""Full disks, two writers, kills and bad sources: an archive is old or new, never between."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import time

import pytest
import torch
from safetensors.torch import save_file

from breaking_files import FailingFiles
from checkpoint_runs import contents, make_run
from lessen import files
from lessen.checkpoints import Archive, Packer, PackSettings, find_snapshots, pack
from lessen.errors import DataError, LessenError, OutputError

EXACT = PackSettings(mode="exact")


@pytest.mark.parametrize("mode", ["exact", "near"])
def test_a_full_disk_at_any_write_leaves_old_or_new(tmp_path, mode, monkeypatch):
    paths = make_run(tmp_path / "run", checkpoints=2)
    settings = PackSettings(mode=mode)
    pack(find_snapshots(paths), tmp_path / "whole", settings)
    finished = contents(tmp_path / "whole")
    fail_at, faults = 1, 0
    while True:
        folder = tmp_path / f"a{fail_at}"
        pack(find_snapshots(paths[:1]), folder, settings)
        layer = FailingFiles(fail_at)
        with monkeypatch.context() as patch:
            patch.setattr(files, "FILES", layer)
            try:
                pack(find_snapshots(paths), folder)
                fault = False
            except OutputError as error:
                fault = True
                assert "No space left" in str(error)
        archive = Archive(folder)
        assert archive.steps in ([8], [8, 16])
        assert archive.verify() == []
        assert not list(folder.glob(f"{files.TEMPORARY}*"))
        pack(find_snapshots(paths), folder)  # and once there is room, packing goes on
        assert contents(folder) == finished
        if not fault:
            break
        faults += 1
        fail_at += max(1, fail_at // 3)
    assert faults > 6


def test_a_full_disk_for_the_reference_is_an_output_error(run, tmp_path, monkeypatch):
    from lessen.checkpoints import reference

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    pack(find_snapshots(run[:1]), tmp_path / "a", EXACT)
    monkeypatch.setattr(reference.os, "pwrite", no_room)
    with pytest.raises(OutputError, match="No space left"):
        pack(find_snapshots(run), tmp_path / "a")
    monkeypatch.undo()
    assert Archive(tmp_path / "a").steps == [8]


def test_two_writers_at_once(run, tmp_path):
    with Packer(tmp_path / "a", EXACT) as packer:
        packer.add(find_snapshots(run[:1])[0])
        with pytest.raises(OutputError, match=f"written by process {os.getpid()}"):
            pack(find_snapshots(run), tmp_path / "a")
        with pytest.raises(OutputError, match="being written"):
            Archive(tmp_path / "a").prune([8])
        assert Archive(tmp_path / "a").steps == [8]  # reading goes on beside a writer
    assert len(pack(find_snapshots(run), tmp_path / "a")) == 4


def _pack_all(paths, folder):
    pack(find_snapshots(paths), folder, PackSettings(mode="exact", key_every=2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_kills_at_random_times_never_lose_what_was_packed_50_rounds(run, tmp_path, seed):
    kill_rounds(run, tmp_path, 10, seed)


def test_kills_at_random_times_never_lose_what_was_packed(run, tmp_path):
    kill_rounds(run, tmp_path, 6, 0)


def kill_rounds(run, tmp_path, rounds, seed):
    """Kill a packing process at a random moment; what it had listed must be whole, and the next one goes on."""
    began = time.monotonic()
    _pack_all(run, tmp_path / "timed")
    span = time.monotonic() - began
    finished = contents(tmp_path / "timed")
    choose = random.Random(seed)
    context = multiprocessing.get_context("fork")
    killed = 0
    folder = tmp_path / "a0"
    for number in range(9 * rounds):
        if killed == rounds:
            break
        process = context.Process(target=_pack_all, args=(run, folder))
        process.start()
        time.sleep(choose.uniform(0, 1.5 * span))
        alive = process.is_alive()
        process.kill()
        process.join()
        killed += alive
        span *= 1.1 if alive else 0.8  # the first run was timed cold, and on a busy machine
        if not (folder / "index.json").exists():
            continue
        archive = Archive(folder)
        assert archive.verify() == []
        for step, path in zip(archive.steps, run, strict=False):
            out = archive.unpack(step, tmp_path / f"o{number}-{step}")
            assert (out / path.name).read_bytes() == path.read_bytes()
        if archive.steps == [8, 16, 24, 32, 40]:
            _pack_all(run, folder)  # cleans up what the kill left
            assert contents(folder) == finished
            folder = tmp_path / f"a{number + 1}"
    assert killed == rounds


def test_errors_are_named_for_every_bad_source(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_snapshots([tmp_path / "nope"])
    with pytest.raises(DataError, match="no checkpoint in"):
        find_snapshots([tmp_path])
    (tmp_path / "step-1.pt").write_bytes(b"garbage")
    with pytest.raises(LessenError, match=r"step-1\.pt"):
        pack(find_snapshots([tmp_path / "step-1.pt"]), tmp_path / "a")


MEASURED = """
import sys
from pathlib import Path
from lessen.checkpoints import Archive, PackSettings, find_snapshots, pack
def peak():
    # not ru_maxrss: a child starts with that of the process that forked it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
pack(find_snapshots([Path(sys.argv[1])]), sys.argv[2], PackSettings(mode="exact"))
archive = Archive(sys.argv[2])
archive.unpack(2, sys.argv[3])
print((peak() - before) / 1000)
"""


@pytest.mark.slow
def test_memory_stays_far_below_the_size_of_a_checkpoint(tmp_path):
    import subprocess
    import sys

    (tmp_path / "run").mkdir()
    weight = torch.randn(70_000, 1024)
    for step in (1, 2):
        save_file({"w": weight}, tmp_path / "run" / f"w-{step}.safetensors")
        weight += 1e-4
    size = 4 * weight.numel() / 1e6
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "run"), str(tmp_path / "a"), str(tmp_path / "o")]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert size > 280
    assert 5 < peak < 0.7 * size
