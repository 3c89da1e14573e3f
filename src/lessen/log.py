"""The place that long work reports to: a silent default, and the interface that the command line fills in."""

from __future__ import annotations


class Log:
    """Receives progress and remarks. The base class is silent; methods and training never print."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of the stage named `what` are finished."""

    def note(self, text: str) -> None:
        """Report one plain line, such as a chosen rank or a skipped module."""


SILENT = Log()


def printable(text: str) -> str:
    """Return `text` with control characters written out, so that a name in a file cannot steer a terminal."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )
