"""`lessen judge`: what compression did to one model beyond the mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessen.cli.arguments import Device, Seed, Threads, parse_call
from lessen.cli.interrupt import interruptible
from lessen.cli.output import AsJson, emit, line, table
from lessen.errors import ConfigError, GateFailed

if TYPE_CHECKING:
    from torch import nn

    from lessen.judging import Card
    from lessen.task import Judge, Task


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command()(judge)


def judge(
    artifact: Annotated[
        str, typer.Argument(help="Artifact of a study or of lessen compress, or FILE.py:NAME.", metavar="ARTIFACT")
    ] = "",
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", "-s", help="NAME, NAME:option=value,... or FILE.py:NAME; repeat for more. See --list."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Uncompressed model (default: the study's reference, else the task's)."),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Task whose data are used (default: the artifact's own).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the card (default: cards/NAME of the study).")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 where a fault is caught.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show the suites and what they ask, and stop.")] = False,
    seed: Seed = 0,
    threads: Threads = 1,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Write the report card of a compact model: flips, worst slices, rare ids, calibration and whatever is asked.

    The page is linked from the frontier page of the artifact's study.

    Example: lessen judge out/demo/artifacts/int8-0 --suite flips --suite slices:least=50
    """
    if listed:
        _list(as_json)
        return
    if not artifact:
        raise ConfigError("give an artifact, such as out/demo/artifacts/int8-0, or --list for the suites")
    from lessen.cli.loading import open_model
    from lessen.cli.progress import Reporting
    from lessen.judging import judge_models
    from lessen.measure.latency import pinned_threads
    from lessen.report import card as cards
    from lessen.train.device import find_device

    asked = []
    for text in suite or ():
        name, options = parse_call(text, "--suite")
        asked.append({"name": name, **options})
    place = _placed(Path(artifact))
    device_place = find_device(device)
    with interruptible(), Reporting() as log, pinned_threads(threads):
        other = against or (str(place.reference) if place is not None else None)
        compact, judged_on = open_model(artifact, task, seed=seed, log=log)
        judges = _ready(asked, judged_on, compact)  # refused before a reference is trained
        if other is None:
            log.note(
                "no --against and no study around the artifact: the task's own reference is the uncompressed model"
            )
            reference = judged_on.reference(seed, log)
        else:
            reference, _ = open_model(other, task, seed=seed, log=log)
        title = Path(artifact).name or artifact
        card = judge_models(
            reference.to(device_place),
            compact.to(device_place),
            judged_on,
            judges,
            title=title,
            threads=threads,
            log=log,
        )
    folder = out or (place.card if place is not None else Path(f"{artifact.split(':')[0].rstrip('/')}-card"))
    back = place.study / "frontier.html" if place is not None and out is None else None
    page = cards.write(card, folder, back if back is not None and back.is_file() else None)
    if back is not None and back.is_file():
        _link(place.study if place is not None else folder)
    _show(card, page, as_json)
    if strict and card.caught:
        raise GateFailed(f"{len(card.caught)} faults were caught; see {page}")


def _ready(asked: list[dict[str, Any]], task: Task, compact: nn.Module) -> list[Judge]:
    """Return the suites that were asked for. Raises ConfigError, CannotAnswer: unknown, or this model has no answer."""
    from lessen.judges import get_judge
    from lessen.judges.suite import Suite

    judges = [get_judge(each, "--suite", own=True, task=task) for each in asked]
    for each in judges:
        why = each.unable(compact) if isinstance(each, Suite) else ""
        if why and isinstance(each, Suite):
            raise each.refuse(why)
    return judges


@dataclass(frozen=True)
class _Place:
    """The place of an artifact in a study."""

    study: Path
    reference: Path
    card: Path


def _placed(path: Path) -> _Place | None:
    """Return the place of an artifact of a study, or None where there is no study around it."""
    study = path.resolve().parent.parent
    seed = path.name.rpartition("-")[2]
    reference = study / "reference" / seed
    if path.parent.name != "artifacts" or not reference.is_dir():
        return None
    from lessen.judging.places import FOLDER

    return _Place(study, reference, study / FOLDER / path.name)


def _link(study: Path) -> None:
    """Write the frontier page of a study again, so that it names the new card."""
    from lessen.files import atomic_write
    from lessen.frontier import Frontier
    from lessen.judging.places import links
    from lessen.report.page import page

    frontier = Frontier.load(study)
    atomic_write(study / "frontier.html", page(frontier, links(frontier, study)))


def _show(card: Card, page: Path, as_json: bool) -> None:
    if as_json:
        emit({"page": str(page), **card.record()})
        return
    from lessen.report.card import headline

    line(headline(card))
    for section in card.sections:
        line(f"\n{section.question}  ({section.name})")
        for fault in section.caught:
            line(f"  ! {fault}")
        for found in section.tables:
            if found.title:
                line(found.title)
            columns = (found.columns[0], *(f">{name}" for name in found.columns[1:]))
            table(columns, found.rows)
        for said in section.lines:
            line(said)
    for why in card.unanswered:
        line(f"\nnot asked: {why}")
    line(f"\nreport card: {page}")


def _list(as_json: bool) -> None:
    from lessen.judges import suites

    found: list[dict[str, Any]] = [
        {"suite": name, "always": cls.always, "question": cls.question} for name, cls in suites().items()
    ]
    if as_json:
        emit({"suites": found})
        return
    table(
        ("suite", "asked", "question"),
        [(each["suite"], "always" if each["always"] else "by name", each["question"]) for each in found],
    )
