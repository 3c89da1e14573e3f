"""Plain lines are sparse and complete; bars are for terminals."""

from __future__ import annotations

import io

import pytest

from lessen.cli.progress import BarLog, PlainLog, Reporting, duration, make_log
from lessen.errors import ConfigError
from lessen.log import Log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(steps: int, seconds: float, announced: bool = True) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    log = PlainLog(stream, clock)
    for done in range(0 if announced else 1, steps + 1):
        log.progress("stage", done, steps)
        clock.now += seconds
    return stream.getvalue().splitlines()


def test_a_long_stage_writes_a_line_each_tenth_with_the_time_left():
    lines = plain(1000, 0.1)
    assert lines[0] == "stage 0/1000 (0 %)"
    assert lines[1] == "stage 100/1000 (10 %), about 1 min 30 s left"
    assert lines[-1] == "stage 1000/1000 (100 %) in 1 min 40 s"
    assert len(lines) == 11


def test_a_quick_stage_writes_its_first_and_last_line_only():
    assert plain(100, 0.01) == ["stage 0/100 (0 %)", "stage 100/100 (100 %) in 1 s"]


def test_inner_stages_are_silent_unless_they_take_long():
    assert plain(8, 0.1, announced=False) == []
    assert plain(8, 10.0, announced=False)[0] == "stage 2/8 (25 %), about 30 s left"


def test_a_slow_stage_speaks_once_a_minute():
    assert len(plain(10_000, 1.0)) > 10_000 / 61


def test_no_control_characters_outside_a_terminal():
    stream = io.StringIO()
    with Reporting(stream) as log:
        log.progress("stage", 0, 2)
        log.note("remark")
        log.progress("stage", 2, 2)
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()
    assert "remark" in stream.getvalue().splitlines()


def test_a_terminal_gets_bars_that_end_in_a_clean_state():
    stream = Terminal()
    with Reporting(stream) as log:
        assert isinstance(log, BarLog)
        log.progress("stage", 0, 2)
        log.note("[not markup]")
        log.progress("stage", 2, 2)
    assert "2/2" in stream.getvalue()
    assert "[not markup]" in stream.getvalue()


@pytest.mark.parametrize(("style", "kind"), [("plain", PlainLog), ("rich", BarLog), ("0", Log)])
def test_the_variable_overrides_the_terminal(monkeypatch, style, kind):
    monkeypatch.setenv("LESSEN_PROGRESS", style)
    assert type(make_log(Terminal())) is kind


def test_an_unknown_style_is_refused(monkeypatch):
    monkeypatch.setenv("LESSEN_PROGRESS", "fancy")
    with pytest.raises(ConfigError, match="fancy"):
        make_log(io.StringIO())


@pytest.mark.parametrize(("seconds", "text"), [(8.2, "8 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
