"""The `lessen` command, also as `python -m lessen`: from its first instruction on, a signal ends it with status 4."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

INTERRUPTED = 4


def _leave(_: int, __: FrameType | None) -> NoReturn:
    os.write(2, b"lessen: stopped\n")
    os._exit(INTERRUPTED)


def main() -> NoReturn:
    """Run the command line of this process and exit with its status.

    While modules are imported and while Python shuts down nothing is half done, so that a signal may end the process
    at once; a verb that works hears signals itself (`cli.interrupt`).
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    import sys

    from lessen.cli import execute

    status = execute(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left before the last lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(status)


if __name__ == "__main__":
    main()
