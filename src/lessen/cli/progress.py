"""Progress for people: one bar with the remaining time on a terminal, sparse plain lines everywhere else.

Talk goes to standard error, so that standard output stays for results.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from lessen.errors import ConfigError
from lessen.log import Log

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

STYLES = ("auto", "rich", "plain", "0")
LINE_SHARE = 0.1
"""A plain line is written for each further tenth of a stage, but not within LINE_SECONDS of the last one ..."""
LINE_SECONDS = 5.0
QUIET_SECONDS = 60.0
"""... and after this many seconds in any case."""


@dataclass
class _Stage:
    began: float
    announced: bool
    share: float
    time: float


class PlainLog(Log):
    """Writes sparse lines, fit for log files and continuous integration.

    A stage that is announced with 0 done gets a first and a last line; others, such as the epochs of one training
    among many, are mentioned only when they take long.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.clock = clock
        self._stages: dict[str, _Stage] = {}

    def progress(self, what: str, done: int, total: int) -> None:
        """Write `what 3/10 (30 %), about 40 s left` when there is news."""
        now, share = self.clock(), done / total if total else 1.0
        stage = self._stages.get(what)
        if stage is None:
            stage = self._stages[what] = _Stage(now, done == 0, 0.0, now)
            news = stage.announced
        else:
            due = LINE_SECONDS if share >= stage.share + LINE_SHARE else QUIET_SECONDS
            news = now - stage.time >= due or (share >= 1 and stage.announced)
        spent = now - stage.began
        if news:
            stage.share, stage.time = share, now
            left = f", about {duration(spent * (1 - share) / share)} left" if 0 < share < 1 else ""
            ended = f" in {duration(spent)}" if share >= 1 else ""
            self._line(f"{what} {done}/{total} ({100 * share:.0f} %){left}{ended}")
        if share >= 1:  # a later stage of the same name starts afresh
            del self._stages[what]

    def note(self, text: str) -> None:
        """Write one line."""
        self._line(text)

    def _line(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()


class BarLog(Log):
    """Draws one bar a stage with elapsed and remaining time; finished bars stay as one line."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self.console = Console(file=stream, highlight=False)
        self._bars: Progress | None = None
        self._stages: dict[str, TaskID] = {}

    def _progress(self) -> Progress:
        if self._bars is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.progress import TimeRemainingColumn as Remaining

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                Remaining(),
            )
            self._bars = Progress(*columns, console=self.console, refresh_per_second=4)
            self._bars.start()
        return self._bars

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar of the stage `what`; a stage that starts again gets a new bar."""
        bars = self._progress()
        stage = self._stages.get(what)
        if stage is None:
            stage = self._stages[what] = bars.add_task(what, total=total)
        bars.update(stage, completed=done, total=total)
        if done >= total:
            bars.stop_task(stage)
            del self._stages[what]

    def note(self, text: str) -> None:
        """Print one line above the bars."""
        self.console.print(text, markup=False)

    def close(self) -> None:
        """Stop drawing and give the terminal back."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class Reporting:
    """Context manager around long work: `with Reporting() as log: ...` picks bars or lines and cleans up."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.log = make_log(self.stream)

    def __enter__(self) -> Log:
        return self.log

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self.log, BarLog):
            self.log.close()


def make_log(stream: TextIO) -> Log:
    """Return the log for `stream`: bars on a terminal, plain lines elsewhere; LESSEN_PROGRESS overrides.

    Raises:
        ConfigError: LESSEN_PROGRESS holds an unknown style.
    """
    style = os.environ.get("LESSEN_PROGRESS", "auto") or "auto"
    if style not in STYLES:
        raise ConfigError(f"LESSEN_PROGRESS = {style!r} is not accepted; allowed: {', '.join(STYLES)}")
    if style == "0":
        return Log()
    if style == "rich" or (style == "auto" and stream.isatty()):
        return BarLog(stream)
    return PlainLog(stream)


def duration(seconds: float) -> str:
    """Return seconds as people say it: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
