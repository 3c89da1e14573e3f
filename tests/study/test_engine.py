"""Engines decide place and order only; a worker that dies costs its own item; nobody outlives a killed parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lessen.errors import ConfigError, MissingExtraError
from lessen.study.engine import InlineEngine, ProcessEngine, RayEngine, make_engine


def square(item: int) -> int:
    return item * item


def dies_on_three(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def slow(file: str) -> None:
    time.sleep(30)
    Path(file).write_text("done")


def values(engine, function, items):
    try:
        return {outcome.index: outcome for outcome in engine.outcomes(function, items)}
    finally:
        engine.close()


def test_processes_give_the_same_serve_a_second_call_and_restart_after_close():
    items, engine = [5, 4, 3], ProcessEngine(2)
    inline = values(InlineEngine(), square, items)
    assert {index: one.value for index, one in inline.items()} == {0: 25, 1: 16, 2: 9}
    assert {one.index: one for one in engine.outcomes(square, items)} == inline
    workers = engine._workers
    assert {one.index: one for one in engine.outcomes(square, items)} == inline
    assert engine._workers is workers  # imports are paid once
    engine.close()
    assert values(engine, square, items[:1]) == {0: inline[0]}


def test_a_killed_worker_costs_its_own_item_only():
    found = values(ProcessEngine(2), dies_on_three, [1, 3, 4])
    assert {index: one.value for index, one in found.items() if not one.error} == {0: 1, 2: 4}
    assert "worker process died" in found[1].error
    assert "--jobs" in found[1].error


def test_abandoning_does_not_wait_for_long_jobs(tmp_path):
    engine, files = ProcessEngine(1), [tmp_path / "first", tmp_path / "second"]
    outcomes = engine.outcomes(slow, [str(file) for file in files])
    with pytest.raises(RuntimeError):
        raise_inside(outcomes, engine)
    assert not any(file.exists() for file in files)  # closed before the first was done


def raise_inside(outcomes, engine):
    """Stop a generator that waits for a worker, as Ctrl-C would."""

    def stop(*_):
        raise RuntimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(3)
    try:
        next(outcomes)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        engine.close()


ORPHAN = """
import sys
sys.path[:0] = {tests!r}
from lessen.study.engine import ProcessEngine
from test_engine import report_and_sleep
if __name__ == "__main__":
    list(ProcessEngine(1).outcomes(report_and_sleep, [{file!r}]))
"""


def report_and_sleep(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(60)


def test_workers_end_with_a_killed_parent(tmp_path):
    file, script = tmp_path / "pid", tmp_path / "main.py"
    script.write_text(ORPHAN.format(tests=[str(Path(__file__).parent)], file=str(file)))
    parent = subprocess.Popen([sys.executable, str(script)])
    worker = int(wait_for(lambda: file.is_file() and file.read_text()))
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not alive(worker), seconds=10)


def wait_for(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def alive(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_unknown_engine_and_job_count_are_named():
    with pytest.raises(ConfigError, match="did you mean 'local'"):
        make_engine("locall", 1)
    with pytest.raises(ConfigError, match="jobs = 0"):
        make_engine("local", 0)
    assert isinstance(make_engine("local", 1), InlineEngine)
    assert isinstance(make_engine("local", 2), ProcessEngine)


def test_ray_without_the_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"lessen\[ray\]"):
        RayEngine(1)
