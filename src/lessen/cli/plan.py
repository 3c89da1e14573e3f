"""`lessen plan`: how many test units and seeds a verdict needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessen.cli.output import AsJson, emit, table
from lessen.errors import ConfigError

if TYPE_CHECKING:
    from lessen.frontier import Point
    from lessen.frontier.power import Errors


MOST_SPREAD = 1e100
"""Above it squares are no numbers any more."""


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command()(plan)


def plan(
    folder: Annotated[
        Path | None, typer.Argument(help="A study that was run, to plan the next.", metavar="[DIR]")
    ] = None,
    margin: Annotated[float | None, typer.Option("--margin", help="Largest loss that you accept.")] = None,
    flips: Annotated[
        float | None, typer.Option("--flips", help="Share of answers that the smaller model changes, right or wrong.")
    ] = None,
    loss: Annotated[float, typer.Option("--loss", help="The true loss that you expect; below 0 is a gain.")] = 0.0,
    spread: Annotated[float, typer.Option("--spread", help="Standard deviation of the loss over seeds.")] = 0.0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=30, help="Seeds that share the test set.")] = 1,
    power: Annotated[float, typer.Option("--power", help="Chance of the verdict.")] = 0.8,
    as_json: AsJson = False,
) -> None:
    """Say how many test units a verdict needs: from the share of answers that change, or from a study that was run.

    Example: lessen plan --margin 0.01 --flips 0.06
    """
    if (folder is None) == (flips is None):
        raise ConfigError("give a folder that `lessen run` wrote, or --flips with --margin, such as --flips 0.06")
    if folder is not None:
        found = _of_study(folder, margin, seeds if seeds > 1 else None, power)
    elif margin is None:
        raise ConfigError("give --margin, the largest loss that you accept, such as --margin 0.01")
    else:
        found = _of_flips(margin, float(flips or 0.0), loss, spread, seeds, power)
    if as_json:
        emit({"power": power, "plan": found})
        return
    columns = {name: f">{name}" if name not in ("recipe", "verdict", "question") else name for name in found[0]}
    table(tuple(columns.values()), [[_shown(row[name]) for name in columns] for row in found])


def _of_flips(
    margin: float, flips: float, loss: float, spread: float, seeds: int, power: float
) -> list[dict[str, Any]]:
    from lessen.frontier.margin import check_margin
    from lessen.frontier.power import errors_of_flips

    check_margin(margin, "--margin")
    if not 0.0 <= spread <= MOST_SPREAD:
        raise ConfigError(f"--spread = {spread:g} is not accepted: a standard deviation is 0 or more, and a number")
    if spread and seeds == 1:
        raise ConfigError("one seed shows nothing of the spread over seeds; give --seeds 2 or more")
    verdict = "within margin" if loss < margin else "worse"
    rows = [(verdict, loss, abs(margin - loss)), ("told from no loss", margin, margin)]
    if loss < 0:
        rows.insert(1, ("better", loss, -loss))
    return [
        {"question": question, "true loss": true, **_needed(errors_of_flips(flips, true, spread), gap, power, seeds)}
        for question, true, gap in rows
    ]


def _of_study(folder: Path, margin: float | None, seeds: int | None, power: float) -> list[dict[str, Any]]:
    from lessen.frontier import Frontier
    from lessen.frontier.margin import check_margin

    frontier = Frontier.load(folder, margin=None if margin is None else check_margin(margin, "--margin"))
    points = [point for point in frontier.measured if frontier.primary in point.difference]
    if not points:
        raise ConfigError(f"{folder} holds no measured recipe; run it first: lessen run")
    if all(point.difference[frontier.primary].parts is None for point in points):
        raise ConfigError(f"{folder} kept no outcomes, so nothing tells units from seeds; run it again: lessen run")
    return [_of_point(point, frontier.primary, frontier.margin, seeds, power) for point in points]


def _of_point(point: Point, metric: str, margin: float, seeds: int | None, power: float) -> dict[str, Any]:
    from lessen.frontier.power import errors_of

    difference = point.difference[metric]
    loss, errors = difference.loss[0], errors_of(difference)
    row = {
        "recipe": point.label,
        "verdict": point.verdict,
        "loss": loss,
        "units now": difference.examples,
        "seeds now": len(point.seeds),
    }
    gap = abs(margin - loss)
    if errors is None or gap == 0.0:
        return {**row, "units": None, "seeds": None}
    return {**row, **_needed(errors, gap, power, seeds or len(point.seeds))}


def _needed(errors: Errors, gap: float, power: float, seeds: int) -> dict[str, Any]:
    """Return the units with these seeds; where no number does, the fewest seeds with which one does."""
    from lessen.frontier.power import seeds_needed, units_needed

    units = units_needed(errors, gap, power, seeds)
    if units is None:
        more = seeds_needed(errors, gap, power)
        return {"units": None if more is None else units_needed(errors, gap, power, more), "seeds": more}
    return {"units": units, "seeds": seeds}


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
