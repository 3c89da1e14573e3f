"""Progress for people: one bar with the remaining time on a terminal, sparse plain lines everywhere else.

Talk goes to standard error, so that standard output stays for results.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from lessen.errors import ConfigError
from lessen.log import Log

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

STYLES = ("auto", "rich", "plain", "0")
LINE_SHARE = 0.1
"""A plain line is written for each further tenth of a stage ..."""
LINE_SECONDS = 60.0
"""... or when this many seconds passed since the last one."""


class PlainLog(Log):
    """Writes one line at each tenth of a stage or each minute; fit for log files and continuous integration."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.clock = clock
        self._began: dict[str, float] = {}
        self._last: dict[str, tuple[float, float]] = {}

    def progress(self, what: str, done: int, total: int) -> None:
        """Write `what 3/10 (30 %), about 40 s left` when there is news; nothing for repeats."""
        now = self.clock()
        share = done / total if total else 1.0
        began = self._began.setdefault(what, now)
        last_share, last_time = self._last.get(what, (-1.0, now))
        news = share >= last_share + LINE_SHARE or (share >= 1.0 and share > last_share)
        if not news and now - last_time < LINE_SECONDS:
            return
        self._last[what] = (share, now)
        left = f", about {duration((now - began) * (1 - share) / share)} left" if 0 < share < 1 else ""
        ended = f" in {duration(now - began)}" if share >= 1 and now > began else ""
        self._line(f"{what} {done}/{total} ({100 * share:.0f} %){left}{ended}")
        if share >= 1:  # a later stage of the same name starts afresh
            self._began.pop(what, None)
            self._last.pop(what, None)

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
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("left"), Remaining(),
            )  # fmt: skip
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
