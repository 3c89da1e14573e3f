"""`lessen renumber`: a pruned model and its vocabularies as they are served, without an id map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lessen.cli.arguments import new_folder
from lessen.cli.interrupt import interruptible
from lessen.cli.output import AsJson, emit, line, size


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command()(renumber)


def renumber(
    model: Annotated[str, typer.Argument(help="An artifact whose tables emb-prune-rows pruned, on the task ctr-logs.")],
    data: Annotated[Path, typer.Option("--data", help="New folder for the data set with the smaller vocabularies.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the artifact.")],
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Task that builds the model; an artifact names its own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Drop pruned values from the vocabularies, so that encoded ids are table rows and serving needs no id map.

    Values that lost their row are encoded as unknown; test scores are compared before and after.

    Example: lessen renumber out/pruned --data encoded-small --out out/served
    """
    from lessen.artifact import folder as artifact
    from lessen.cli.loading import open_model
    from lessen.errors import ConfigError
    from lessen.export.renumber import renumber as renumber_model
    from lessen.methods.sites import state_bytes
    from lessen.tasks.ctr.logs import LogClicks

    for folder in (data, out):
        new_folder(folder)
    with interruptible():
        network, judge = open_model(model, task)
        if not isinstance(judge, LogClicks):
            raise ConfigError(
                f"{model} is of the task {judge.name}; only ctr-logs has vocabularies on disk to renumber"
            )
        made = renumber_model(network, judge, data)
        probe = made.task.inputs(made.task.example_batch())
        artifact.save(out, made.model, made.task.build(), task=made.task.describe(), probe=probe)
    before, after = state_bytes(network), state_bytes(made.model)
    if as_json:
        emit(
            {
                "artifact": str(out),
                "data": str(data),
                "rows_before": made.rows_before,
                "rows_after": made.rows_after,
                "bytes_before": before,
                "bytes_after": after,
                "largest_difference": made.largest_difference,
            }
        )
        return
    line(f"{made.rows_before} rows -> {made.rows_after}, tensors {size(before)} -> {size(after)}")
    line(f"test scores differ by at most {made.largest_difference:.1g}")
    line(f"artifact: {out}, data set: {data}")
