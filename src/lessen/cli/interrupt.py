"""Ctrl-C and SIGTERM: the first stops the work cleanly, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = 4
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first signal into KeyboardInterrupt; a second one exits at once (all writes are atomic)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _first) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first(_: int, __: FrameType | None) -> None:
    for number in SIGNALS:
        signal.signal(number, _second)
    raise KeyboardInterrupt


def _second(_: int, __: FrameType | None) -> None:
    os._exit(STATUS)
