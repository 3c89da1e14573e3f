"""`lessen doctor` and `lessen version`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lessen.cli.arguments import Threads
from lessen.cli.interrupt import interruptible
from lessen.cli.output import AsJson, emit, line, table

if TYPE_CHECKING:
    from lessen.cli.doctor import Finding


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command()(doctor)
    app.command()(version)


def doctor(
    folder: Annotated[Path | None, typer.Option("--out", "-o", help="Where studies will be written.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time what models are made of, for the forecasts of `lessen advise`.")
    ] = False,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Look at this machine: versions, threads, processor features, memory, disk, missing extras.

    Example: lessen doctor --measure
    """
    from lessen.cli import doctor as examination
    from lessen.errors import EnvironmentFault

    findings = examination.examine(folder)
    if measure:
        findings.append(_measured(threads))
    if as_json:
        emit({"healthy": examination.healthy(findings), "findings": examination.as_records(findings)})
    else:
        signs = {"ok": "", "note": "note", "problem": "PROBLEM"}
        rows = [(f.topic, f.item, f.value, signs[f.status], f.advice) for f in findings]
        table(("topic", "item", "found", "", "advice"), rows)
    if not examination.healthy(findings):
        first = next(finding for finding in findings if finding.status == "problem")
        raise EnvironmentFault(f"{first.topic}: {first.item}: {first.value}; {first.advice}")


def _measured(threads: int) -> Finding:
    """Time this machine, keep the figures in the cache, and return what was found."""
    from lessen.cli.doctor import Finding
    from lessen.cli.progress import Reporting
    from lessen.measure import machine

    place = machine.place_of(threads)
    with interruptible(), Reporting() as log:
        found = machine.measure(threads, log)
        machine.save(place, found)
    return Finding("speed", f"{threads} thread(s)", f"{len(found.grids) + len(found.lines)} kinds timed: {place}")


def show_version(wanted: bool) -> None:
    """Print the version and leave, as `--version` before any verb asks."""
    if wanted:
        version()
        raise typer.Exit


def version(as_json: AsJson = False) -> None:
    """Print the version.

    Example: lessen version
    """
    from lessen.version import __version__

    emit({"lessen": __version__}) if as_json else line(f"lessen {__version__}")
