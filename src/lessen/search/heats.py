"""The races of a search: the recipes of a round on growing parts of the validation rows, before any is measured whole.

<out>/races.json    what went out: recipe, cost, the loss on the rows that were seen, and their share

Whole batches are drawn, so that a model is called as ever; what stays in is measured like everything else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lessen import files
from lessen.artifact.delta import base_of
from lessen.artifact.folder import stored_size
from lessen.costs import MACS, PARAMETERS, RESIDENT, STORED
from lessen.errors import ConfigError, LessenError
from lessen.log import SILENT, Log
from lessen.measure.record import measure_cost
from lessen.metrics import Outcomes
from lessen.recipe import Recipe
from lessen.search.goal import Goal
from lessen.search.propose import Measured
from lessen.search.racing import race
from lessen.stored.serving import served
from lessen.task import Task

RACES = "races.json"
RACED = (STORED.name, MACS.name, PARAMETERS.name, RESIDENT.name)
"""Costs that need no clock, so that they are known when a race starts."""


@dataclass(frozen=True)
class Out:
    """A recipe that went out of a race."""

    recipe: str
    cost: float
    """Share of the reference's."""
    loss: float
    share: float
    """Of the validation rows, that were seen."""

    @property
    def measured(self) -> Measured:
        """What predictors learn from it."""
        return Measured(self.cost, self.loss)


class Heats:
    """Races recipes against each other on one reference."""

    def __init__(self, task: Task, goal: Goal, seed: int, log: Log = SILENT) -> None:
        if goal.cost not in RACED:
            raise ConfigError(
                f"--race goes by a cost without a clock ({', '.join(RACED)}), and this search is about {goal.cost!r}"
            )
        self.task, self.goal, self.seed, self.log = task, goal, seed, log
        self.batches = list(task.batches("validation"))
        self.order = np.random.default_rng([seed, 11]).permutation(len(self.batches))
        self.starts = np.cumsum([0, *(task.units_in(batch) for batch in self.batches)])

    def run(self, recipes: Sequence[Recipe], reference: nn.Module) -> tuple[list[Recipe], dict[str, Out]]:
        """Return the recipes that stay in, in their order, and those that went out by the hash of their recipe.

        What cannot be applied stays in: measuring it says why.
        """
        models: list[tuple[Recipe, nn.Module]] = []
        failed = []
        for recipe in recipes:
            try:
                models.append((recipe, recipe.apply(reference, self.task, seed=self.seed)[0]))
            except LessenError:
                failed.append(recipe.hash)
        if len(models) < 2:
            return list(recipes), {}
        whole = self._cost(reference, reference, Recipe([]))
        costs = [self._cost(model, reference, recipe) / whole for recipe, model in models]
        seen: dict[tuple[int | None, float], Outcomes] = {}

        def judge(entrant: int | None, share: float) -> Outcomes:
            if (entrant, share) not in seen:
                model = reference if entrant is None else models[entrant][1]
                seen[entrant, share] = self._judged(model, share)
            return seen[entrant, share]

        finish = race(costs, judge, self.task.metrics[self.task.primary], self.goal)
        out = {
            recipe.hash: Out(recipe.name, costs[at], finish.losses[at], finish.shares[at])
            for at, (recipe, _) in enumerate(models)
            if at != finish.winner and 0 < finish.shares[at] < 1.0
        }
        self.log.note(f"race of {len(models)}: {len(out)} went out on {_percent(finish.shares)} of the rows")
        return [recipe for recipe in recipes if recipe.hash not in out], out

    def _cost(self, model: nn.Module, reference: nn.Module, recipe: Recipe) -> float:
        described = self.task.describe() if self.task.Options is not None else None
        stored = stored_size(model, reference, described, base_of(reference) if recipe.keeps_base else None)
        if self.goal.cost == STORED.name:
            return float(stored)
        return float(asdict(measure_cost(self.task, model, stored_bytes=stored))[self.goal.cost])

    def _judged(self, model: nn.Module, share: float) -> Outcomes:
        """Return outcomes on the first share of the batches, in the order of the race."""
        taken = self.order[: max(1, round(share * len(self.order)))]
        rows = np.concatenate([np.arange(self.starts[at], self.starts[at + 1]) for at in taken])
        groups = self.task.groups("validation")
        changes: dict[str, Any] = {"batches": lambda _split, _seed=0: (self.batches[at] for at in taken)}
        if groups is not None:
            changes["groups"] = lambda _split: groups[rows]
        with served(model):
            return self.task.view(**changes).outcomes(model, "validation")


def write(folder: Path, out: Mapping[str, Out]) -> None:
    """Keep what went out. Raises OutputError."""
    files.atomic_write(folder / RACES, files.dump_json({digest: asdict(one) for digest, one in out.items()}))


def read(folder: Path) -> dict[str, Out]:
    """Return what an earlier run of this search sent out. Raises ConfigError for a damaged file."""
    path = folder / RACES
    if not path.exists():
        return {}
    try:
        value = files.parse_json(files.read_checked(path), str(path))
        found = {
            str(digest): Out(str(one["recipe"]), float(one["cost"]), float(one["loss"]), float(one["share"]))
            for digest, one in value.items()
        }
        if not all(math.isfinite(number) for one in found.values() for number in (one.cost, one.loss, one.share)):
            raise ValueError("a figure is no number")
    except (LessenError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{path} is damaged ({error}); remove the folder and search again") from error
    return found


def _percent(shares: Sequence[float]) -> str:
    return f"{100 * float(np.mean(shares)):.0f} %"
