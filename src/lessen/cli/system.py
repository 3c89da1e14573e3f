"""`lessen doctor` and `lessen version`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lessen.cli.output import AsJson, emit, line, table


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command()(doctor)
    app.command()(version)


def doctor(
    folder: Annotated[Path | None, typer.Option("--out", "-o", help="Where studies will be written.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look at this machine: versions, threads, processor features, memory, disk, missing extras.

    Example: lessen doctor
    """
    from lessen.cli import doctor as examination
    from lessen.errors import EnvironmentFault

    findings = examination.examine(folder)
    if as_json:
        emit({"healthy": examination.healthy(findings), "findings": examination.as_records(findings)})
    else:
        signs = {"ok": "", "note": "note", "problem": "PROBLEM"}
        rows = [(f.topic, f.item, f.value, signs[f.status], f.advice) for f in findings]
        table(("topic", "item", "found", "", "advice"), rows)
    if not examination.healthy(findings):
        first = next(finding for finding in findings if finding.status == "problem")
        raise EnvironmentFault(f"{first.topic}: {first.item}: {first.value}; {first.advice}")


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
