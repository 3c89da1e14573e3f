"""`lessen search`: the best recipe of a space within a budget."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lessen.cli.interrupt import interruptible
from lessen.cli.output import AsJson, emit, line
from lessen.errors import GateFailed, Interrupted

if TYPE_CHECKING:
    from lessen.search import SearchResult


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command()(search)


def search(
    study: Annotated[Path, typer.Argument(help="A study file with the key `space`.", metavar="STUDY.yaml")],
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", help="Such as 'stored_bytes<=0.1x, auc>=-0.001'.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for everything the search writes.")] = None,
    evaluations: Annotated[
        int, typer.Option("--evaluations", "-n", min=2, max=100_000, help="Recipes that are measured at most.")
    ] = 48,
    batch: Annotated[int, typer.Option("--batch", min=1, max=1000, help="Recipes of one round.")] = 8,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=1, max=10**7, help="Start no round after this time.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31, help="Of the first design and of draws.")] = 0,
    engine: Annotated[str, typer.Option("--engine", help="Where jobs run: local or ray.")] = "local",
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Parallel jobs (default: one a usable core).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search that the folder holds.")] = False,
    race: Annotated[
        bool, typer.Option("--race", help="Stop judging recipes that can no longer win; for large validation splits.")
    ] = False,
    sampler: Annotated[
        Literal["lessen", "tpe", "nsga2", "random"],
        typer.Option("--sampler", help="Who proposes recipes: lessen's predictors, or Optuna (extra `search`)."),
    ] = "lessen",
    storage: Annotated[
        str | None, typer.Option("--storage", help="URL where Optuna keeps its trials, such as sqlite:///trials.db.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search a space of recipes for the best within a budget; validation rows choose, the test set judges.

    Example: lessen search studies/search-demo.yaml --budget "stored_bytes<=0.15x, auc>=-0.003" --out out/search
    """
    from lessen.cli.doctor import available_cores
    from lessen.cli.progress import Reporting
    from lessen.search import search as run_search
    from lessen.search.file import load
    from lessen.study.engine import make_engine

    place = out or Path("out") / study.stem
    again = (
        f"lessen search {shlex.quote(str(study))} --budget {shlex.quote(budget or '')} --out {shlex.quote(str(place))}"
    )
    with interruptible():
        try:
            with Reporting() as log:
                asked, space = load(study, log)
                workers = jobs if jobs is not None else max(1, available_cores() // asked.threads)
                make_engine(engine, workers).close()
                found = run_search(
                    asked,
                    space,
                    budget if budget is not None else list(asked.budget),
                    place,
                    evaluations=evaluations,
                    batch=batch,
                    seconds=seconds,
                    engine=lambda: make_engine(engine, workers),
                    resume=resume,
                    race=race,
                    sampler=sampler,
                    storage=storage,
                    seed=seed,
                    log=log,
                )
                page = _write(found)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; what was measured is kept; continue with: {again} --resume") from None
    _show(found, page, as_json)


def _write(found: SearchResult) -> Path:
    """Write the pages of the final study and of all that was tried; return the first."""
    from lessen.frontier import Frontier
    from lessen.report import write_frontier
    from lessen.search.run import EVALUATIONS

    tried = Frontier.load(found.out / EVALUATIONS, metrics=found.final.metrics)
    write_frontier(tried, found.out / EVALUATIONS)
    place = found.folder
    write_frontier(found.final, place)
    return place / "frontier.html"


def _show(found: SearchResult, page: Path, as_json: bool) -> None:
    from lessen.cli.studies import show

    if as_json:
        emit(_told(found, page))
    else:
        line(f"{found.tried} of {found.size} recipes were tried; the finalists on the test set:\n")
        show(found.final)
        if found.winner is not None:
            line(f"\nbest within the budget: {found.winner}")
        line(f"why it ended: {found.why}")
        line(f"artifacts: {found.folder / 'artifacts'}\nreport: {page}")
    if found.winner is None:
        raise GateFailed(f"no recipe meets the budget; the nearest is {found.nearest!r}; {found.why}; see {page}")


def _told(found: SearchResult, page: Path) -> dict[str, Any]:
    return {
        "winner": found.winner,
        "nearest": found.nearest,
        "why": found.why,
        "tried": found.tried,
        "size": found.size,
        "areas": list(found.areas),
        "report": str(page),
    }
