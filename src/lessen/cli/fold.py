"""`lessen fold`: savings that change no output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lessen.cli.arguments import Device, Seed, Threads, new_folder
from lessen.cli.interrupt import interruptible
from lessen.cli.output import AsJson, emit, line, table

SHOWN = 12


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command()(fold)


def fold(
    model: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face folder, a GGUF file, an artifact, FILE.py:NAME, a reference folder of a study, or the "
            "word 'reference' to train it."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the artifact.")],
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "-t", help="Task whose inputs prove the folds; left out, a Hugging Face model gets drawn ones."
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", help="Largest loss of the first metric: rounding is all that can be lost.")
    ] = 1e-4,
    seed: Seed = 0,
    threads: Threads = 1,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Fold what changes no output: norms, branches, linear chains, spare units, constant parts; keep the artifact.

    Each fold is proven on inputs before it is kept; what was looked at and left alone is said with the reason.

    Example: lessen fold reference --task ctr-movielens100k --out out/folded
    """
    from lessen.cli.loading import open_model
    from lessen.cli.progress import Reporting
    from lessen.frontier.margin import check_margin
    from lessen.measure.latency import pinned_threads
    from lessen.methods.weights.fold import LosslessFold
    from lessen.recipe import Recipe
    from lessen.trade import compress
    from lessen.train.device import find_device

    check_margin(margin, "--margin")
    place = find_device(device)
    recipe = Recipe([LosslessFold()], name="fold")
    new_folder(out)
    with interruptible(), Reporting() as log, pinned_threads(threads):
        original, judge = open_model(model, task, seed=seed, log=log, recipe=recipe)
        trade = compress(original.to(place), judge, recipe, margin=margin, seed=seed, threads=threads, log=log)
        stored = trade.save(out)
    findings = trade.measurement.steps[0]["findings"]
    if as_json:
        emit({"artifact": str(out), "stored_bytes": stored, "fold": findings, **trade.measurement.record()})
        return
    _show(findings)
    line(str(trade))
    line(f"\nartifact: {out}")


def _show(findings: dict[str, Any]) -> None:
    folded, kept = findings["folded"], findings["kept"]
    table(("folded", "what goes", "into"), [(each["kind"], each["path"], each["into"]) for each in folded[:SHOWN]])
    if len(folded) > SHOWN:
        line(f"... and {len(folded) - SHOWN} more")
    error, bound = findings["error"], findings["bound"]
    line(f"largest difference of an answer: {error:.1e} of its largest value ({bound:.0e} allowed)")
    if kept:
        table(("left alone", "why"), list(kept.items())[:SHOWN])
    if findings["unused"]:
        line(f"never called, kept: {', '.join(findings['unused'][:SHOWN])}")
    line("")
