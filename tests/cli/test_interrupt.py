"""Real kills and real Ctrl-C in the middle of `lessen run`; resuming gives the same measurements."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import typer

from lessen import cli
from study_tools import TEXT, settled, temporaries, write

LONG = TEXT.replace("rounds: 8", "rounds: 400")


def start(study, out, *more):
    command = [sys.executable, "-m", "lessen", "run", str(study), "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def wait_until(process, condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def runs(out):
    return {path.name: path.read_bytes() for path in (out / "runs").glob("*.json")}


@pytest.mark.parametrize("jobs", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_kill_in_the_middle_loses_at_most_what_was_in_flight(tmp_path, jobs, capsys):
    study, out = write(tmp_path / "study.yaml", LONG), tmp_path / "out"
    process = start(study, out, "--jobs", jobs)
    wait_until(process, lambda: runs(out))
    process.kill()
    process.communicate()
    kept = runs(out)
    lines = (out / "measurements.jsonl").read_bytes() if (out / "measurements.jsonl").exists() else b""
    assert 1 <= len(kept) < 4
    assert cli.execute(["run", str(study), "--out", str(out), "--jobs", "1", "--resume"]) == 0, capsys.readouterr()
    assert {name: raw for name, raw in runs(out).items() if name in kept} == kept
    assert (out / "measurements.jsonl").read_bytes().startswith(lines)
    assert temporaries(out) == []
    assert len(settled(out)) == 4


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path):
    study, out = write(tmp_path / "study.yaml", LONG), tmp_path / "a folder"
    process = start(study, out, "--jobs", "2")
    wait_until(process, lambda: runs(out) or list((out / "compressed").glob("*.json")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    text, talk = process.communicate(timeout=60)
    assert process.returncode == 4
    assert text == ""
    assert talk.splitlines()[-1].endswith(f"continue with: lessen run {study} --resume --out '{out}'")
    assert "Traceback" not in talk
    assert (out / "study.yaml").exists()


def test_a_second_ctrl_c_ends_at_once():
    code = (
        "import os, signal, sys, time\nfrom lessen.cli.interrupt import interruptible\n"
        "with interruptible():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
        "    except KeyboardInterrupt:\n"
        "        print('first', flush=True); os.kill(os.getpid(), signal.SIGTERM); time.sleep(9); print('late')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=8)
    assert (done.returncode, done.stdout) == (4, "first\n")


SIGNALLED = """
import os, signal, sys, threading
stage, number = sys.argv[1], int(sys.argv[2])
class AtImport:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), number)
if stage == "importing":
    sys.meta_path.insert(0, AtImport())
else:
    import atexit
    atexit.register(os.kill, os.getpid(), number)
sys.argv[1:] = ["version"]
from lessen.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["importing", "shutting down"])
def test_signals_while_importing_or_shutting_down_give_the_same_status(stage, number):
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, stage, str(int(number))], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (4, "lessen: stopped\n")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, typer.Abort])
def test_a_signal_inside_any_verb_is_status_4_whatever_the_parser_makes_of_it(monkeypatch, capsys, stop):
    app = typer.Typer()

    @app.command()
    def verb() -> None:
        raise stop

    monkeypatch.setattr(cli, "app", app)
    assert cli.execute([]) == 4
    assert capsys.readouterr().err.strip() == "lessen: stopped"
