"""A script run as a fork of this process: a fresh one would first import torch, which takes most of its time."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path


class ForkedScript:
    """`python SCRIPT ARGUMENTS` with more variables in its environment; what it writes to stderr goes to a file."""

    def __init__(self, script: Path, arguments: Sequence[str], variables: Mapping[str, str], errors: Path) -> None:
        self._errors = errors
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _run(script, arguments, variables, errors)

    def ended(self) -> tuple[int, str]:
        """Wait for its end; return its status and what it wrote to stderr."""
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status), self._errors.read_text()


def _run(script: Path, arguments: Sequence[str], variables: Mapping[str, str], errors: Path) -> None:
    status = 1
    try:
        os.environ.update(variables)
        sys.argv = [str(script), *arguments]
        sys.stderr = errors.open("w", buffering=1)
        runpy.run_path(str(script), run_name="__main__")
        status = 0
    except SystemExit as ending:
        status = int(ending.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
