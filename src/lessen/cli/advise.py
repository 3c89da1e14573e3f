"""`lessen advise`: what to try on a model, in which order, with forecasts and reasons."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lessen.cli.arguments import Threads
from lessen.cli.interrupt import interruptible
from lessen.cli.output import AsJson, emit, line, size, table
from lessen.errors import GateFailed

if TYPE_CHECKING:
    from lessen.advice import Advice, Line
    from lessen.recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command()(advise)


def advise(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A Hugging Face folder, a GGUF file, an artifact, FILE.py:NAME, a .safetensors file, or "
            "'reference' to train the task's own; left out: that one untrained."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="Task it is judged on: NAME, NAME:option=value,..., or FILE.py:NAME."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", help="Such as 'stored_bytes<=0.25x, latency_ratio<=1, auc>=-0.002'.")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, max=1000, help="Recipes that are listed.")] = 12,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Say what to try on a model, in which order, what each would leave, and why; nothing is trained.

    Stored bytes are exact. Times need `lessen doctor --measure`, once a machine.

    Example: lessen advise --task ctr-movielens100k --budget "stored_bytes<=0.25x"
    """
    from lessen.advice import advise as advise_on
    from lessen.cli.loading import open_model
    from lessen.cli.progress import Reporting

    with interruptible(), Reporting() as log:
        opened, judge = open_model(model, task, log=log)
        found = advise_on(opened, judge, budget or (), threads=threads, log=log)
        if model is None:
            log.note(
                "an untrained model is looked at: what weights decide (ranks, rows that stay) differs once trained"
            )
    commands = {one.recipe.hash: _command(one.recipe, model, task, budget) for one in (*found.lines, *found.over)}
    if as_json:
        emit(_told(found, commands, most))
    else:
        _show(found, commands, most)
    if not found.lines:
        raise GateFailed(_nothing(found))


def _show(found: Advice, commands: dict[str, str], most: int) -> None:
    line(found.situation.told())
    known = [one for one in found.lines if one.cost][:most]
    heads = ("", "try", ">stored bytes", ">of now", ">multiply-adds", ">time", "because")
    rows = [(str(at), one.recipe.name, *_figures(one, found), one.reason) for at, one in enumerate(known, 1)]
    if rows:
        table(heads, rows)
    stage = ""
    for at, one in enumerate(known, 1):
        if one.stage != stage:
            stage = one.stage
            line(f"\n{stage}:")
        line(f"  {at}. {commands[one.recipe.hash]}")
    unknown = [one for one in found.lines if not one.cost]
    if unknown:
        line("\nno forecast, a run has to tell:")
        for one in unknown[:most]:
            line(f"  {one.recipe.name}: {one.unknown}\n    {commands[one.recipe.hash]}")
    if found.over:
        line(f"\n{len(found.over)} more miss the budget by their forecast; the nearest is {_spelled(found.over[0])}")
    if found.untimed:
        line(f"\nno times: {found.untimed}")


def _spelled(one: Line) -> str:
    return f"{one.recipe.name} with {size(one.cost['stored_bytes'])} stored"


def _figures(one: Line, found: Advice) -> tuple[str, str, str, str]:
    macs, before = one.cost.get("macs"), found.before.get("macs")
    ratio = one.cost.get("latency_ratio")
    return (
        f"{one.cost['stored_bytes']:,.0f}",
        f"{100 * one.cost['stored_bytes'] / found.before['stored_bytes']:.1f} %",
        "-" if macs is None or not before else f"{100 * macs / before:.0f} %",
        "-" if ratio is None else f"{ratio:.2f}x",
    )


def _command(recipe: Recipe, model: str | None, task: str | None, budget: str | None) -> str:
    """Return the command that tries a recipe; a loss that the budget accepts is its margin."""
    words = ["lessen", "compress", model or "reference"]
    if task is not None:
        words += ["--task", task]
    for step in recipe.steps:
        changed = {name: value for name, value in step.knobs().items() if value != type(step)().knobs().get(name)}
        knobs = ",".join(f"{name}={_value(value)}" for name, value in changed.items())
        words += ["--step", f"{step.card.name}:{knobs}" if knobs else step.card.name]
    loss = _loss_of(budget)
    if 0 < loss < float("inf"):
        words += ["--margin", f"{loss:g}"]
    words += ["--out", f"out/{re.sub(r'[^a-z0-9]+', '-', recipe.name.lower()).strip('-')}-{recipe.hash[:6]}"]
    return " ".join(map(shlex.quote, words))


def _loss_of(budget: str | None) -> float:
    """Return the loss that the first line on a metric accepts, 0 where there is none."""
    from lessen.advice.advise import FORECAST
    from lessen.frontier.gates import parse_gates

    return next((abs(gate.limit) for gate in parse_gates(budget or "") if gate.name not in FORECAST), 0.0)


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _nothing(found: Advice) -> str:
    if not found.over:
        return f"nothing that the rules know acts on this model ({found.situation.told()}); see: lessen profile"
    one = found.over[0]
    missed = ", ".join(one.missed)
    return f"no recipe that the rules know meets the budget; the nearest is {_spelled(one)}, which misses {missed}"


def _told(found: Advice, commands: dict[str, str], most: int) -> dict[str, Any]:
    return {
        "model": found.situation.told(),
        "before": dict(found.before),
        "try": [_one(one, commands) for one in found.lines[:most]],
        "over_budget": [{**_one(one, commands), "misses": list(one.missed)} for one in found.over],
        "finds_nothing": list(found.unfit),
        "untimed": found.untimed,
    }


def _one(one: Line, commands: dict[str, str]) -> dict[str, Any]:
    return {
        "recipe": one.recipe.describe(),
        "stage": one.stage,
        "reason": one.reason,
        "cost": dict(one.cost),
        "unknown": one.unknown,
        "command": commands[one.recipe.hash],
    }
