"""The `lessen` command: verbs in one file a group, and the one place where errors become lines and exit statuses.

Nothing here imports torch; a verb imports what it needs when it runs, so that help appears at once.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lessen.cli import (
    advise,
    bars,
    catalogue,
    checkpoint,
    export,
    fold,
    generate,
    index,
    judge,
    models,
    new_method,
    plan,
    rank,
    renumber,
    search,
    studies,
    system,
    tokens,
)
from lessen.cli.output import say
from lessen.errors import LessenError

DONE, BAD_INPUT, ENVIRONMENT, INTERRUPTED = 0, 2, 3, 4
_STOPPED = 130
"""What typer makes of a KeyboardInterrupt inside a verb (0.29; before, an Abort)."""

app = typer.Typer(
    name="lessen",
    help="Make trained models cost less, and prove what that cost in quality. First try: lessen demo",
    epilog="Exit status: 0 done, 1 a gate failed, 2 bad input, 3 environment, 4 interrupted and resumable.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=system.show_version, is_eager=True)
    ] = False,
) -> None:
    """Take what comes before a verb."""


for group in (
    studies,
    search,
    plan,
    advise,
    judge,
    models,
    fold,
    export,
    renumber,
    rank,
    generate,
    catalogue,
    new_method,
    system,
):
    group.register(app)
for family in (checkpoint, tokens, bars, index):
    app.add_typer(family.app)


def execute(arguments: list[str]) -> int:
    """Run one command and return its exit status; whatever goes wrong is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter must not cost the result
            stream.reconfigure(errors="backslashreplace")
    try:
        status = app(args=arguments, prog_name="lessen", standalone_mode=False)
    except LessenError as error:
        say(f"lessen: {error}")
        return error.exit_status
    except (KeyboardInterrupt, typer.Abort):
        status = _STOPPED
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except MemoryError:
        say("lessen: out of memory; use fewer --jobs, smaller batches or a larger machine")
        return ENVIRONMENT
    except Exception as error:
        return _unexpected(error)
    if status == _STOPPED:
        say("lessen: stopped")
        return INTERRUPTED
    return status if isinstance(status, int) else DONE


def _unexpected(error: Exception) -> int:
    message = getattr(error, "format_message", None)
    if message is not None:  # a mistake in the command line itself, found by the parser
        text = str(message()).strip()
        if text:
            context = getattr(error, "ctx", None)
            hint = f"; see: {context.command_path} --help" if context is not None else ""
            say(f"lessen: {text.rstrip('.')}{hint}")
        return BAD_INPUT
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # no name of ours is either
        say(f"lessen: {str(error.filename)[:80]!r}: {error.strerror}; give another path")
        return BAD_INPUT
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="lessen-trace-", suffix=".txt", delete=False) as handle:
        handle.write(traceback.format_exc())
    words = " ".join(str(error).split())[:300]
    say(f"lessen: this is a fault in lessen: {type(error).__name__}: {words}; the full trace is in {Path(handle.name)}")
    return ENVIRONMENT
