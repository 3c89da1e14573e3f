"""Peak memory is measured in children that cannot hang: none forks while it has threads, each ends in time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from lessen.artifact import folder as artifact
from lessen.data.encode import SplitRule, encode_logs
from lessen.data.schema import FieldSchema, Schema
from lessen.measure import memory
from lessen.measure.memory import PeakMeter
from lessen.tasks import get_task


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A click log that polars reads, and the artifact of an untrained model on it."""
    root = tmp_path_factory.mktemp("logs")
    rows = [f"{number % 2},a{number % 7},b{number % 5}" for number in range(600)]
    (root / "log.csv").write_text("\n".join(["label,left,right", *rows]))
    fields = [FieldSchema(name=name, kind="categorical") for name in ("left", "right")]
    schema = Schema(fields=(FieldSchema(name="label", kind="label"), *fields))
    encode_logs([str(root / "log.csv")], schema, root / "data", SplitRule(fractions=(0.6, 0.2, 0.2)))
    task = get_task({"name": "ctr-logs", "data": str(root / "data"), "model": "dnn"})
    torch.manual_seed(0)
    model = task.build().eval()
    probe = task.inputs(task.example_batch())
    artifact.save(root / "artifact", model, model, task=task.describe(), probe=probe)
    return task.describe(), root / "artifact"


def test_a_task_that_polars_reads_is_measured(logs):
    description, place = logs
    with PeakMeter(description) as meter:
        first, second = meter.measure(place), meter.measure(place)
    assert first is not None
    assert second is not None
    assert 0 < first.growth_bytes < first.peak_rss_bytes
    assert abs(first.peak_rss_bytes - second.peak_rss_bytes) < 0.2 * first.peak_rss_bytes


def test_no_fork_while_there_are_threads(logs, monkeypatch):
    """A process with a second thread measures in a fresh process."""
    description, place = logs
    held = threading.Event()
    other = threading.Thread(target=held.wait, daemon=True)
    other.start()
    try:
        assert not memory._single_threaded()
        monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
        assert memory._in_a_process(description, place, 120)["peak_rss_bytes"] > 0
    finally:
        held.set()
        other.join()


def test_a_dead_child_gives_no_peak(tmp_path):
    with PeakMeter({"name": "no such task"}) as meter:
        assert meter.measure(tmp_path) is None


def test_a_measurement_that_takes_too_long_is_given_up(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")  # reading it would wait for ever
    start = time.monotonic()
    with PeakMeter({"name": "ctr-synthetic"}, seconds=1) as meter:
        assert meter.measure(tmp_path) is None
    assert time.monotonic() - start < 60  # not a speed: a hang would take the test's own time limit


ORPHAN = """
import os, sys, signal
from lessen.measure.memory import PeakMeter
meter = PeakMeter({"name": "ctr-synthetic"}, seconds=600)
print(meter._child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_child_ends_with_its_parent():
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=120)
    child = int(done.stdout)
    for _ in range(300):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]:
            return
        time.sleep(0.1)
    os.kill(child, 9)
    pytest.fail("the child outlived its parent")
