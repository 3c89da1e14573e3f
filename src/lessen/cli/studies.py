"""`lessen demo`, `lessen run` and `lessen report`: studies and what they showed."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessen.cli.interrupt import interruptible
from lessen.cli.output import AsJson, emit, line, table
from lessen.errors import GateFailed, Interrupted

if TYPE_CHECKING:
    from lessen.frontier import Frontier
    from lessen.log import Log
    from lessen.study import Study, StudyResult
    from lessen.study.parts import Parts

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for everything the study writes.")]
EngineName = Annotated[str, typer.Option("--engine", help="Where jobs run: local or ray.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", help="Parallel jobs (default: one for each usable core).")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the study that the folder holds.")]


ROOMS = {"clicks": "demo.yaml", "language": "demo-language.yaml", "vision": "demo-vision.yaml"}
"""Studies that ship with the package, by what they are about."""


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    app.command()(demo)
    app.command()(run)
    app.command()(report)


def demo(
    out: Out = None,
    jobs: Jobs = None,
    room: Annotated[
        str, typer.Option("--room", help="What is made smaller: clicks (real data), language or vision (both offline).")
    ] = "clicks",
    as_json: AsJson = False,
) -> None:
    """Run a study that ships with lessen and show the frontier; ten recipes on real clicks unless a room is named.

    Continues by itself when it was stopped.

    Example: lessen demo --room language --out out/demo-language
    """
    from importlib.resources import as_file, files

    from lessen.errors import ConfigError, nearest

    if room not in ROOMS:
        raise ConfigError(f"no room is called {room!r}; {nearest(room, ROOMS)}")
    again = "lessen demo" if room == "clicks" else f"lessen demo --room {room}"
    with as_file(files("lessen") / "study" / ROOMS[room]) as study:
        _run(study, out or Path("out") / study.stem, "local", jobs, resume=True, as_json=as_json, again=again)


def run(
    study: Annotated[Path, typer.Argument(help="Study file (YAML).", metavar="STUDY.yaml")],
    out: Out = None,
    engine: EngineName = "local",
    jobs: Jobs = None,
    resume: Resume = False,
    only: Annotated[
        str | None,
        typer.Option("--only", help="Run recipes whose name matches this glob only."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=1, max=10**7, help="Start nothing new after this time.")
    ] = None,
    stop_when_certain: Annotated[
        bool, typer.Option("--stop-when-certain", help="Leave out seeds of recipes whose verdict is certain before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compress, measure and judge every recipe of a study, and write the report.

    The default folder is out/NAME after the study file.

    Example: lessen run studies/tables.yaml --out out/tables --jobs 2
    """
    again = f"lessen run {shlex.quote(str(study))}" + (f" --engine {engine}" if engine != "local" else "")
    _run(
        study,
        out or Path("out") / study.stem,
        engine,
        jobs,
        resume=resume,
        only=only,
        seconds=seconds,
        as_json=as_json,
        again=f"{again} --resume" + (" --stop-when-certain" if stop_when_certain else ""),
        early=stop_when_certain,
    )


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `lessen run` wrote.", metavar="DIR...")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write (default: the first folder).")] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Also tell a tracker, a run a recipe: mlflow or wandb.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of one or several studies again, from their files alone.

    Example: lessen report out/tables out/tables-low-rank --out out/both
    Example: lessen report out/tables --to mlflow
    """
    from lessen.frontier import Frontier
    from lessen.report.tracking import tracker
    from lessen.study.parts import parts_of

    tell = None if to is None else tracker(to)
    parts = parts_of(folders[0]) if len(folders) == 1 else None
    if parts is not None:
        name, places = parts
        found = {part: Frontier.load(place) for part, place in places.items()}
        if tell:
            for part, place in places.items():
                tell(place, f"{name}, {part}", found[part])
        _finish_joint(name, found, out or folders[0], as_json)
        return
    frontier = Frontier.load(*folders)
    page = _write_report(frontier, out or folders[0])
    if tell:
        tell(out or folders[0], None, frontier)
    _finish(frontier, page, as_json)


def _run(
    path: Path,
    out: Path,
    engine: str,
    jobs: int | None,
    *,
    resume: bool,
    as_json: bool,
    again: str,
    only: str | None = None,
    seconds: float | None = None,
    early: bool = False,
) -> None:
    from lessen.cli.progress import Reporting
    from lessen.study.parts import Parts, load, unfinished

    again = f"{again} --out {shlex.quote(str(out))}"
    with interruptible():
        try:
            with Reporting() as log:
                study = stopping(load(path, log)) if early else load(path, log)
                if isinstance(study, Parts):
                    chosen = study.holding(only)
                    places = study.open(out, resume=resume)
                    end = None if seconds is None else time.monotonic() + seconds
                    found, left = {}, 0
                    for part, place in zip(study.studies, places, strict=True):
                        log.note(f"part {part.name}")
                        rest = None if end is None else end - time.monotonic()
                        if part in chosen and (rest is None or rest > 0):
                            result = _one(part, place, engine, jobs, resume=True, only=only, seconds=rest, log=log)
                        else:
                            result = unfinished(part, place)
                        left += result.left
                        frontier = _frontier(result, part.task.metrics) if result.records else None
                        if frontier is not None:
                            _write_report(frontier, place)
                            found[part.name] = frontier
                else:
                    result = _one(study, out, engine, jobs, resume=resume, only=only, seconds=seconds, log=log)
                    log.note("writing the report")
                    frontier = _frontier(result, study.task.metrics)
                    page = _write_report(frontier, out) if frontier else None
        except KeyboardInterrupt:
            kept = len(list(out.rglob("runs/*.json")))
            raise Interrupted(f"stopped; {kept} finished runs are kept; continue with: {again}") from None
    if isinstance(study, Parts):
        runs = sum(len(part.runs()) for part in study.studies)
        if left and not as_json:
            line(f"{left} of {runs} runs are left; go on with: {again}")
        if found or not left:
            _finish_joint(study.name, found, out, as_json)
        return
    if result.left and not as_json:
        line(f"{result.left} of {len(study.runs())} runs are left; go on with: {again}")
    if result.left and not result.records:
        return
    if frontier is None or page is None:
        raise GateFailed(f"no recipe could be measured; the reasons are in {out / 'measurements.jsonl'}")
    _finish(frontier, page, as_json)


def stopping(study: Study | Parts) -> Study | Parts:
    """Return the study, or every part of it, leaving out seeds of recipes whose verdict is certain."""
    from dataclasses import replace

    from lessen.study.parts import Parts

    if isinstance(study, Parts):
        return replace(study, studies=[replace(part, stop_when_certain=True) for part in study.studies])
    return replace(study, stop_when_certain=True)


def _one(
    study: Study,
    out: Path,
    engine: str,
    jobs: int | None,
    *,
    resume: bool,
    log: Log,
    only: str | None = None,
    seconds: float | None = None,
) -> StudyResult:
    from lessen.cli.doctor import available_cores
    from lessen.study import run as run_study
    from lessen.study.engine import make_engine

    workers = jobs if jobs is not None else max(1, available_cores() // study.threads)
    place = make_engine(engine, min(workers, max(1, len(study.runs()))) if workers >= 1 else workers)
    return run_study(study, out, engine=place, resume=resume, only=only, seconds=seconds, log=log)


def _finish_joint(title: str, parts: dict[str, Frontier], out: Path, as_json: bool) -> None:
    """Write the page of all parts and show what came out; raise GateFailed when a part was not measured."""
    from lessen.report import table as report_table
    from lessen.report.joint import write_joint

    if not parts:
        raise GateFailed(f"no recipe of any part could be measured; the reasons are in {out}/*/measurements.jsonl")
    page = write_joint(title, parts, out)
    if as_json:
        emit({"report": str(page), "parts": {name: report_table.rows(found) for name, found in parts.items()}})
        return
    for name, frontier in parts.items():
        line(f"\n{name}")
        show(frontier)
    line(f"\nreport: {page}")


def _frontier(result: StudyResult, metrics: Any) -> Frontier | None:
    from lessen.frontier import Frontier

    if len(result.failed) == len(result.records):
        return None
    return Frontier.load(result.out, metrics=metrics)


def _write_report(frontier: Frontier, out: Path) -> Path:
    from lessen.report import write_frontier

    write_frontier(frontier, out)
    return out / "frontier.html"


def _finish(frontier: Frontier, page: Path, as_json: bool) -> None:
    """Show what came out; raise GateFailed when no recipe holds every gate."""
    from lessen.report import table as report_table

    if as_json:
        emit(
            {
                "report": str(page),
                "gates_hold": frontier.gates_hold,
                "recipes": report_table.rows(frontier),
            }
        )
    else:
        show(frontier)
        line(f"\nreport: {page}")
    if not frontier.gates_hold:
        raise GateFailed(f"no recipe holds {', '.join(gate.text for gate in frontier.gates)}; see {page}")


def show(frontier: Frontier) -> None:
    """Print the verdict sentence and the trade table."""
    from lessen.report import wording
    from lessen.report.content import trade_rows

    line(wording.headline(frontier))
    line("")
    rows = [
        (
            "*" if row["front"] else "",
            row["label"],
            row["costs"].get(frontier.cost, {}).get("after", "–"),
            row["costs"].get(frontier.cost, {}).get("share", "–"),
            row["latency"],
            row["difference"],
            row["verdict"],
        )
        for row in trade_rows(frontier)
    ]
    metric = frontier.title(frontier.primary)
    title = wording.cost_name(frontier.cost)
    table(
        ("", "recipe", f">{title}", ">of reference", ">latency ratio", f">{metric} difference [95 %]", "verdict"), rows
    )
    line(f"* on the frontier of {title} and {metric}")
