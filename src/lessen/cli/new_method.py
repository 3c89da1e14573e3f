"""`lessen new-method`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lessen.cli.output import AsJson, emit, line


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command("new-method")(new_method)


def new_method(
    name: Annotated[str, typer.Argument(help="Slug of the method, such as emb-round.", metavar="NAME")],
    family: Annotated[str, typer.Option("--family", help="Family it belongs to.")] = "weights",
    folder: Annotated[
        Path, typer.Option("--in", help="A checkout of lessen, or the folder of your own package.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a new method and its test: both run as they are, and you change the rule.

    That is one file under methods/ and one test in a checkout of lessen; the entry point is shown in your own package.

    Example: lessen new-method weight-round --family weights
    """
    from lessen.cli.method_skeleton import write

    made = write(name, family, folder)
    if as_json:
        emit({"method": str(made.method), "test": str(made.test), "entry_point": made.entry_point})
        return
    line(f"wrote {made.method}\nwrote {made.test}\nrun   pytest {made.test}")
    if made.entry_point:
        line(f'add to your pyproject.toml:\n[project.entry-points."lessen.methods"]\n{made.entry_point}')
