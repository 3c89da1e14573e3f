"""Running a search: rounds of a study that grows, then a study of its finalists over all seeds, which is the verdict.

<out>/space.json          what may be tried and for which budget; a folder belongs to one space
<out>/evaluations/        a study like any other: one seed, every recipe that was tried, judged on validation rows too
<out>/final/              the study of the finalists: all seeds, the test set, artifacts; its verdicts are the answer

The search reads validation figures only. What it read on them is the best of many, so the final study judges anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lessen import files
from lessen.artifact import folder as artifact
from lessen.costs import cost_kind
from lessen.errors import BudgetError, ConfigError, OutputError
from lessen.frontier import Frontier, Point
from lessen.frontier.records import number
from lessen.judges.selection import Selection
from lessen.log import SILENT, Log
from lessen.recipe import Recipe
from lessen.search.genomes import read as read_genomes
from lessen.search.genomes import write as write_genomes
from lessen.search.goal import Goal
from lessen.search.heats import Heats, Out
from lessen.search.heats import read as read_races
from lessen.search.heats import write as write_races
from lessen.search.optuna_samplers import OptunaSamplers, Sampler
from lessen.search.pareto import hypervolume
from lessen.search.places import check_places
from lessen.search.propose import Measured, propose
from lessen.search.space import Genome, Space
from lessen.study import Study
from lessen.study.engine import Engine
from lessen.study.folder import StudyFolder
from lessen.study.run import run

SPACE, EVALUATIONS, FINAL = "space.json", "evaluations", "final"
FINALISTS = 3
"""Recipes that are judged over all seeds."""
STILL = 3
"""Rounds without a larger front after which a search has found what it finds."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    out: Path
    folder: Path
    """Of the final study."""
    tried: int
    size: int
    areas: tuple[float, ...]
    """Area of the measured front after each round; never falls."""
    winner: str | None
    """Recipe of the final study that holds every line of the budget, or None."""
    nearest: str
    """Where there is no winner, the recipe that comes nearest."""
    why: str
    """Why nothing better was found."""
    final: Frontier


def search(
    study: Study,
    space: Space,
    budget: str | Sequence[str],
    out: Path | str,
    *,
    evaluations: int = 48,
    batch: int = 8,
    seconds: float | None = None,
    engine: Callable[[], Engine] | None = None,
    resume: bool = False,
    race: bool = False,
    sampler: Sampler = "lessen",
    storage: str | None = None,
    seed: int = 0,
    log: Log = SILENT,
) -> SearchResult:
    """Search `space` for the best recipe within `budget`; recipes of `study` are tried first and have to be beaten.

    Args:
        evaluations: recipes that are measured at most, those of the study included.
        batch: recipes of one round.
        seconds: no round starts after this time; finalists are judged all the same.
        engine: makes the engine of each round; default in this process.
        race: let the recipes of a round race on parts of the validation rows, and measure those that stay in.
        sampler: who proposes recipes: lessen's predictors, or a sampler of Optuna's.
        storage: URL where Optuna keeps its trials, for its dashboard; in memory by default.
        seed: of the first design and of draws.

    Raises:
        MissingExtraError: Optuna's samplers without optuna.
        ConfigError: a budget on something that is not measured, a place that the model lacks, names that clash,
            a storage without a sampler of Optuna's or one that cannot be opened.
        OutputError: `out` holds a search of another space, or this one without `resume`.
        BudgetError: nothing that was tried could be measured.
    """
    goal = Goal.parse(budget, study.cost, study.task.metrics)
    place = Path(out)
    proposer: Any = propose
    if sampler != "lessen":
        proposer = OptunaSamplers(space, sampler, seed, storage, study.name)
    elif storage is not None:
        raise ConfigError("--storage is where Optuna keeps its trials: add --sampler tpe, nsga2 or random")
    check_places(space, study.task)
    heats = Heats(study.task, goal, study.seeds[0], log) if race else None
    _claim(place, study, space, goal, resume)
    searching = _Searching(study, space, goal, place, engine, seed, log)
    searching.heats, searching.propose = heats, proposer
    areas = searching.rounds(evaluations, batch, None if seconds is None else time.monotonic() + seconds)
    return searching.finish(areas)


class _Searching:
    """One search in its folder."""

    def __init__(
        self,
        study: Study,
        space: Space,
        goal: Goal,
        out: Path,
        engine: Callable[[], Engine] | None,
        seed: int,
        log: Log,
    ) -> None:
        self.study, self.space, self.goal, self.out = study, space, goal, out
        self.engine, self.seed, self.log = engine, seed, log
        self.by_hand = [recipe for recipe in study.recipes if recipe.steps]
        self.genomes: dict[str, Genome] = {}
        """Genomes that were tried, by the hash of their recipe."""
        self.recipes: list[Recipe] = list(self.by_hand)
        self.records: dict[str, Mapping[str, Any]] = {}
        self.up = False
        self.heats: Heats | None = None
        self.propose: Any = propose
        self.out_of_race: dict[str, Out] = {}
        """Recipes that a race sent out, by their hash: never measured whole."""

    # -- rounds ----------------------------------------------------------------------------------------------------
    def rounds(self, evaluations: int, batch: int, end: float | None) -> list[float]:
        """Measure round after round; return the area of the front after each."""
        self._recall()
        areas: list[float] = []
        if self.recipes:
            self._measure()
            areas.append(self._area())
        while (tried := len(self.recipes) + len(self.out_of_race)) < evaluations:
            if end is not None and time.monotonic() >= end:
                self.up = True
                break
            count = min(batch, evaluations - tried)
            fresh = self._propose(count)
            if not fresh:
                break
            self.genomes |= {recipe.hash: genome for genome, recipe in fresh}
            self.recipes += self._raced([recipe for _, recipe in fresh])
            self._measure()
            areas.append(self._area())
            best = self._best()
            self.log.note(
                f"round {len(areas)}: {len(self.recipes)} of at most {evaluations} recipes tried; "
                + (f"nearest to the budget: {best[0].name}" if best else "none could be measured yet")
            )
            if len(areas) > 2 * STILL and areas[-1] <= areas[-1 - STILL] * (1 + 1e-9):
                break
        return areas

    def _recall(self) -> None:
        """Take up the recipes that an earlier run of this search has tried, in their order."""
        stored = self.out / EVALUATIONS / "study.yaml"
        if not stored.is_file():
            return
        value = files.parse_yaml(files.read_text(stored, "study"), str(stored))
        by_hash = {recipe.hash: recipe for recipe in self.by_hand}
        for number_, item in enumerate(value.get("recipes") or (), 1):
            recipe = Recipe.parse(item, f"{stored}: recipe {number_}", own=True)
            if recipe.hash not in by_hash:
                self.recipes.append(recipe)
        known = {recipe.hash for recipe in self.recipes}
        listed = read_genomes(self.out, self.space)
        self.out_of_race = read_races(self.out)
        self.genomes = {
            digest: genome for digest, genome in listed.items() if digest in known or digest in self.out_of_race
        }

    def _raced(self, fresh: list[Recipe]) -> list[Recipe]:
        """Return the recipes of a round that are worth measuring whole: all of them where nobody races."""
        if self.heats is None:
            return fresh
        place = StudyFolder(self.out / EVALUATIONS).reference(self.study.seeds[0])
        if not place.is_dir():
            return fresh  # the first round makes the reference
        reference = artifact.load(place, model=self.study.task.build())
        stay, out = self.heats.run(fresh, reference)
        self.out_of_race |= out
        write_races(self.out, self.out_of_race)
        return stay

    def _propose(self, count: int) -> list[tuple[Genome, Recipe]]:
        """Return genomes to measure and their recipes; two genomes that make one recipe are measured once."""
        known = {recipe.hash for recipe in self.recipes} | set(self.out_of_race)
        measured = self._measured()
        found: list[tuple[Genome, Recipe]] = []
        for _ in range(20):
            asked = self.propose(self.space, measured, count - len(found), goal=self.goal, seed=self.seed)
            for genome in asked:
                recipe = self.space.recipe(genome)
                measured[genome] = Measured(None, None)
                if recipe.hash not in known:
                    known.add(recipe.hash)
                    found.append((genome, recipe))
            if not asked or len(found) >= count or len(measured) >= self.space.size:
                break
        return found

    def _measure(self) -> None:
        """Measure what is new of `recipes`: the study of the folder grows."""
        write_genomes(self.out, self.genomes)
        growing = replace(
            self.study,
            recipes=tuple(self.recipes),
            seeds=(self.study.seeds[0],),
            judges=(*self.study.judges, Selection.of(self.study.task)),
            budget=(),
            measure=self.study.measure.model_copy(update={"baselines": False}),
        )
        engine = self.engine() if self.engine is not None else None
        # what failed once is not tried again by every round
        bad = {record["recipe"] for record in self.records.values() if record.get("status") != "ok"}
        names = frozenset(recipe.name for recipe in self.recipes if recipe.name not in bad)
        place = self.out / EVALUATIONS
        result = run(growing, place, engine=engine, resume=True, only=names, log=self.log)
        self.records = {str(record["recipe_hash"]): record for record in result.records}

    # -- what was measured -----------------------------------------------------------------------------------------
    def point(self, recipe: Recipe) -> Measured:
        """Return cost share and validation loss of a recipe that was tried."""
        record = self.records.get(recipe.hash)
        if record is None or record.get("status") != "ok":
            return Measured(None, None)
        kind = cost_kind(self.goal.cost)
        after, before = number(record["cost"].get(kind.name)), number(record["reference"]["cost"].get(kind.name))
        metric = f"{Selection.name}.{self.study.task.primary}"
        value, base = number(record["quality"].get(metric)), number(record["reference"]["quality"].get(metric))
        if after is None or not before or value is None or base is None:
            return Measured(None, None)
        share = before / after if kind.more_is_better and after else after / before
        higher = self.study.task.metrics[self.study.task.primary].higher_is_better
        return Measured(share, base - value if higher else value - base)

    def _measured(self) -> dict[Genome, Measured]:
        nothing = tuple(
            next((at for at, step in enumerate(slot.options) if step is None), -1) for slot in self.space.slots
        )
        found = {} if -1 in nothing else {nothing: Measured(1.0, 0.0)}  # the reference itself
        by_hash = {recipe.hash: recipe for recipe in self.recipes}
        for digest, genome in self.genomes.items():
            raced = self.out_of_race.get(digest)
            found[genome] = self.point(by_hash[digest]) if raced is None else raced.measured
        return found

    def _area(self) -> float:
        points = [self.point(recipe) for recipe in self.recipes]
        values = [[p.cost, p.loss] for p in points if p.cost is not None and p.loss is not None]
        corner = np.array([1.0, max(20 * self.goal.bend, 1e-3)])
        return hypervolume(np.array(values, dtype=np.float64).reshape(-1, 2), corner)

    def _best(self, count: int = 1) -> list[Recipe]:
        """Return the recipes that do best by the goal on validation rows."""
        scored = []
        for at, recipe in enumerate(self.recipes):
            point = self.point(recipe)
            if point.cost is not None and point.loss is not None:
                wanted = point.cost if self.goal.loss is not None else point.loss
                scored.append((self.goal.misses(point.cost, point.loss), wanted, at, recipe))
        return [row[3] for row in sorted(scored, key=lambda row: row[:3])[:count]]

    # -- the answer --------------------------------------------------------------------------------------------------
    def finish(self, areas: Sequence[float]) -> SearchResult:
        """Judge the finalists over all seeds on the test set; raise BudgetError where nothing could be measured."""
        finalists = self._finalists()
        if not finalists:
            first = next((str(r.get("error")) for r in self.records.values() if r.get("error")), "nothing was tried")
            raise BudgetError(f"the search measured no recipe; the first reason: {first}")
        gates = [text.strip() for text in self.goal.text.split(",")]
        final = replace(self.study, recipes=tuple(finalists), budget=tuple(gates))
        engine = self.engine() if self.engine is not None else None
        self.log.note(f"judging {len(finalists)} finalists on the test set over {len(final.seeds)} seeds")
        folder = _place_of(self.out, finalists)
        run(final, folder, engine=engine, resume=True, log=self.log)
        frontier = Frontier.load(folder, metrics=self.study.task.metrics)
        winner, nearest = self._winner(frontier), self._nearest(frontier)
        return SearchResult(
            self.out,
            folder,
            len(self.recipes) + len(self.out_of_race),
            self.space.size,
            tuple(areas),
            winner,
            nearest,
            self._why(winner, nearest, frontier),
            frontier,
        )

    def _finalists(self) -> list[Recipe]:
        """Return the best of the search and the best that was written by hand: it has to be beaten fairly."""
        best = self._best(FINALISTS)
        mine = {recipe.hash for recipe in self.by_hand}
        hand = next((recipe for recipe in self._best(len(self.recipes)) if recipe.hash in mine), None)
        return best if hand is None or hand in best else [*best, hand]

    def _winner(self, final: Frontier) -> str | None:
        holding = [p for p in final.measured if all(p.gates.values()) and p.gates]
        if not holding:
            return None
        return min(holding, key=lambda p: (self._wanted(p), p.label)).recipe

    def _wanted(self, point: Point) -> float:
        share = point.axis(self.goal.cost)
        return (share if share is not None else math.inf) if self.goal.loss is not None else self._lost(point)

    def _lost(self, point: Point) -> float:
        name = self.study.task.primary
        difference = point.difference.get(name)
        if difference is None:
            return math.inf
        higher = self.study.task.metrics[name].higher_is_better
        return float(-difference.value if higher else difference.value)

    def _nearest(self, final: Frontier) -> str:
        def missed(point: Point) -> float:
            share = point.axis(self.goal.cost)
            return self.goal.misses(share if share is not None else math.inf, self._lost(point))

        return min(final.measured, key=lambda p: (missed(p), self._wanted(p), p.label)).recipe if final.measured else ""

    def _why(self, winner: str | None, nearest: str, final: Frontier) -> str:
        """Say in a line why the search ended and what stands in the way of more."""
        tried, size = len(self.recipes) + len(self.out_of_race), self.space.size
        if self.up:
            ended = "the time was up"
        elif tried >= size - 1:
            ended = "the whole space was tried"
        else:
            ended = f"{tried} of {size} recipes were tried and the last rounds added nothing, or the count was reached"
        if winner is not None:
            return ended
        point = final[nearest] if nearest else None
        lines = [text for text, holds in point.gates.items() if not holds] if point is not None else []
        return f"{ended}; the nearest does not hold {', '.join(lines)}" if lines else ended


def _place_of(out: Path, finalists: Sequence[Recipe]) -> Path:
    """Return the folder of the final study of these recipes: a search that goes on may end with others."""
    told = "-".join(sorted(recipe.hash for recipe in finalists))
    return out / f"{FINAL}-{files.digest(told.encode())[:6]}"


def _claim(out: Path, study: Study, space: Space, goal: Goal, resume: bool) -> None:
    """Take the folder for this search. Raises OutputError where it holds another, or this one without `resume`."""
    told = {"space": space.digest, "study": study.name, "cost": goal.cost}
    path = out / SPACE
    if path.exists():
        held = files.parse_json(files.read_checked(path), str(path))
        if not isinstance(held, dict) or {key: held.get(key) for key in told} != told:
            raise OutputError(f"{out} holds a search of another space or study; choose another --out or remove it")
        if not resume:
            raise OutputError(f"{out} already holds this search; add --resume to go on or choose another --out")
    elif out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{out} holds other files and no search; choose another --out")
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    files.atomic_write(path, files.dump_json({**told, "budget": goal.text, "size": space.size}))
