"""`lessen compress`, `lessen profile` and `lessen verify`: one model at a time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lessen.cli.interrupt import interruptible
from lessen.cli.talk import AsJson, emit, line, size, table
from lessen.cli.words import new_folder, parse_step, parse_task

TaskText = Annotated[str, typer.Option("--task", "-t", help="Task it is judged on: NAME or NAME:option=value,...")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command()(compress)
    app.command()(profile)
    app.command()(verify)


def compress(
    model: Annotated[
        str,
        typer.Argument(
            help="A reference folder of a study, an artifact, a .safetensors file, or the word 'reference' to train it."
        ),
    ],
    task: TaskText,
    step: Annotated[
        list[str], typer.Option("--step", "-s", help="METHOD or METHOD:knob=value,...; repeat for more steps.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the artifact.")],
    margin: Annotated[
        float, typer.Option("--margin", help="Largest loss of the first metric that you accept.")
    ] = 0.002,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of training and of the methods.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="torch threads.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Compress one model, measure it beside the original, and keep the result as an artifact.

    Example: lessen compress reference --task ctr-movielens100k --step emb-rowwise-quant:bits=4 --out out/int4
    """
    from lessen.cli.loading import load_model
    from lessen.cli.progress import Reporting
    from lessen.latency import pinned_threads
    from lessen.recipe import Recipe
    from lessen.tasks import get_task
    from lessen.trade import compress as compress_model

    recipe = Recipe.parse({"steps": [parse_step(text) for text in step]}, "--step")
    new_folder(out)
    with interruptible(), Reporting() as log, pinned_threads(threads):
        judge = get_task(parse_task(task), "--task")
        original = load_model(model, judge, seed=seed, log=log)
        trade = compress_model(original, judge, recipe, margin=margin, seed=seed, threads=threads, log=log)
        stored = trade.save(out)
    if as_json:
        record = trade.measurement.record()
        emit({"artifact": str(out), "stored_bytes": stored, "verdict": trade.verdict, "reason": trade.judgement.reason,
              "differences": {name: asdict(found) for name, found in trade.differences.items()}, **record})  # fmt: skip
    else:
        line(str(trade))
        line(f"\nartifact: {out} (check it with: lessen verify {out})")


def profile(
    model: Annotated[
        str | None,
        typer.Argument(
            help="An artifact, a reference folder or a .safetensors file; left out: the task's untrained model."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Task that builds the model: NAME or NAME:option=value,...")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show where the bytes of a model are, how often its table rows are read, and what each method would leave.

    Rows are counted over the task's train split. Nothing is trained: of a table method that trains, the compact tables
    are built and weighed at their default knobs.

    Example: lessen profile --task ctr-movielens100k
    """
    from lessen.cli.loading import open_model
    from lessen.cli.profile import examine

    with interruptible():
        network, judge = open_model(model, parse_task(task) if task else None)
        found = examine(network, judge)
    if as_json:
        emit(asdict(found))
        return
    table(
        ("module", "kind", ">rows", ">width", ">bytes", ">share"),
        [
            (part.path, part.kind, part.rows or "", part.width or "", size(part.bytes), f"{100 * part.share:.1f} %")
            for part in found.modules
        ],
    )
    line(f"total {size(found.total_bytes)}\n")
    if found.tables:
        table(
            ("table", "field", ">rows", ">read", ">lookups", ">to the top 1 %", ">rows of 90 %"),
            [
                (
                    use.path,
                    use.field,
                    use.rows,
                    use.rows_read,
                    use.lookups,
                    f"{100 * use.head_share:.0f} %",
                    use.head_rows,
                )
                for use in found.tables
            ],
            title="rows that the train split reads",
        )
        line("")
    table(
        ("method", ">bytes left", ">of now", "remark"),
        [
            (
                one.method,
                "" if one.bytes is None else size(one.bytes),
                "" if one.share is None else f"{100 * one.share:.1f} %",
                one.remark,
            )
            for one in found.forecasts
        ],
        title="forecast at default knobs",
    )


def verify(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.", metavar="ARTIFACT")],
    as_json: AsJson = False,
) -> None:
    """Check an artifact: digests, structure, and that it still gives the outputs it gave when it was written.

    Example: lessen verify out/demo/artifacts/int8-0
    """
    from lessen.artifact import verify as verify_artifact

    found = verify_artifact(artifact)
    if as_json:
        emit({**asdict(found), "path": str(found.path)})
        return
    outputs = {
        "equal": "outputs equal bit for bit",
        "close": f"outputs differ by at most {found.largest_difference:.2g}",
        "none": "no recorded outputs to compare",
    }[found.probe]
    line(f"{artifact}: {found.files} files unchanged, {size(found.stored_bytes)} stored, {outputs}")
