"""What a study file may say: typed, closed, and checked as a whole before anything runs."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lessen import files
from lessen.costs import cost_kinds
from lessen.errors import ConfigError, explain, nearest
from lessen.frontier.gates import check_units, parse_gates
from lessen.frontier.margin import check_margin
from lessen.frontier.records import REFERENCE, file_name
from lessen.judges import get_judge
from lessen.log import SILENT, Log
from lessen.recipe import Recipe
from lessen.task import Judge, Task
from lessen.tasks import get_task
from lessen.train.device import find_device


class MeasureOptions(BaseModel):
    """How costs are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rounds: int = Field(40, ge=8, le=100_000, description="timed pairs of reference and compact model")
    threads: int = Field(1, ge=1, le=1024, description="torch threads while timing")
    batches: int = Field(4, ge=1, le=1000, description="test batches that take turns while timing")
    peak_memory: bool = Field(True, description="measure peak memory in a child process (built-in tasks only)")
    baselines: bool = Field(True, description="fit the task's simple baselines on the same features, if it has any")


RETIRED = {"resamples": "intervals leave units out, so that nothing is resampled"}
"""Keys of `measure` in older study files, and why they mean nothing now."""


def current(measure: Any) -> Any:
    """Return measuring options without the keys of older study files that mean nothing now."""
    return {k: v for k, v in measure.items() if k not in RETIRED} if isinstance(measure, Mapping) else measure


class StudyFile(BaseModel):
    """The keys of a study file; tasks and recipes are parsed by their own contracts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    study: str = Field(pattern=r"^[\w.+ -]{1,100}$", description="name of the study")
    task: str | dict[str, Any] = Field(description="name of the task, or a mapping of name and options")
    judges: list[str | dict[str, Any]] = Field([], max_length=100, description="judges beside the task")
    seeds: list[Annotated[int, Field(ge=0, le=2**31)]] = Field([0, 1, 2], min_length=1, max_length=1000)
    margin: float | dict[str, float] | None = Field(None, description="largest acceptable loss of the first metric")
    budget: str | list[str] = Field("", description="gates such as 'stored_bytes<=0.5x, auc>=-0.003'")
    cost: str = Field("stored_bytes", description="kind of cost that the study is about: an axis of its pictures")
    recipes: list[Any] = Field(min_length=1, max_length=10_000)
    threads: int = Field(1, ge=1, le=1024, description="torch threads of one training or compression job")
    measure: MeasureOptions = MeasureOptions()
    device: str = Field("cpu", description="where models are trained, compressed, judged and timed: cpu, cuda, cuda:1")
    stop_when_certain: bool = Field(False, description="leave out seeds of recipes whose verdict is certain before")


@dataclass(frozen=True)
class Study:
    """A checked study. Build it from YAML with `load`, or from objects when the task is your own class."""

    name: str
    task: Task
    recipes: Sequence[Recipe]
    seeds: Sequence[int] = (0, 1, 2)
    margin: float | None = None
    budget: Sequence[str] = ()
    threads: int = 1
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    judges: Sequence[Judge] = ()
    """Judges that look at every model beside the task; their metrics are called `judge.metric`."""
    cost: str = "stored_bytes"
    """Kind of cost that the study is about: an axis of its pictures."""
    device: str = "cpu"
    """Where models are trained, compressed, judged and timed."""
    stop_when_certain: bool = False
    """Whether the seeds of a recipe are left out once its verdict is certain; see `frontier/early.py`."""

    def __post_init__(self) -> None:
        _check_unique(self.name, self.recipes, self.seeds)
        find_device(self.device)
        _check_judges(self.task, self.judges)
        metrics = {*self.task.metrics, *(f"{j.name}.{metric}" for j in self.judges for metric in j.metrics)}
        known = {*metrics, *(kind.name for kind in cost_kinds())}
        gates = parse_gates(list(self.budget))
        check_units(gates, metrics)
        for gate in gates:
            if gate.name not in known:
                raise ConfigError(f"budget {gate.text!r}: nothing is called {gate.name!r}; {nearest(gate.name, known)}")
        if self.margin is not None:
            check_margin(self.margin)
        self.task.check_metrics()

    @classmethod
    def load(cls, path: Path, log: Log = SILENT) -> Study:
        """Read a study file. Raises ConfigError naming file, key and what is allowed."""
        return cls.parse(files.parse_yaml(files.read_text(path, "study"), str(path)), str(path), log)

    @classmethod
    def parse(cls, value: Any, where: str = "study", log: Log = SILENT) -> Study:
        """Build a study from its YAML form; `log` hears of keys that mean nothing any more. Raises ConfigError."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping with the keys study, task and recipes")
        raw = _validated(_without_retired(value, where, log), where)
        task = get_task(raw.task, f"{where}: task", own=True)
        recipes = [
            Recipe.parse(item, f"{where}: recipe {number}", own=True) for number, item in enumerate(raw.recipes, 1)
        ]
        margin = _margin(raw.margin, task, where)
        lines = [raw.budget] if isinstance(raw.budget, str) else raw.budget
        try:
            budget = [gate.text for line in lines for gate in parse_gates(line)]
            judges = [
                get_judge(item, f"{where}: judge {at}", own=True, task=task) for at, item in enumerate(raw.judges, 1)
            ]
            return cls(
                raw.study,
                task,
                recipes,
                raw.seeds,
                margin,
                budget,
                raw.threads,
                raw.measure,
                judges,
                raw.cost,
                raw.device,
                raw.stop_when_certain,
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def describe(self) -> dict[str, Any]:
        """Return the resolved study: every knob and option, defaults included, JSON values only."""
        return {
            "study": self.name,
            "task": dict(self.task.origin or self.task.describe()),
            "seeds": list(self.seeds),
            "margin": self.margin,
            "budget": list(self.budget),
            "threads": self.threads,
            **({"device": self.device} if self.device != "cpu" else {}),
            **({"stop_when_certain": True} if self.stop_when_certain else {}),
            **({"cost": self.cost} if self.cost != "stored_bytes" else {}),
            "measure": self.measure.model_dump(),
            **({"judges": [dict(j.origin or j.describe()) for j in self.judges]} if self.judges else {}),
            "recipes": [recipe.describe() for recipe in self.recipes],
        }

    def runs(self) -> list[tuple[Recipe, int]]:
        """Return every (recipe, seed) in the order of the measurements file."""
        return [(recipe, seed) for recipe in self.recipes for seed in self.seeds]


def _without_retired(value: Mapping[Any, Any], where: str, log: Log) -> Mapping[Any, Any]:
    measure = value.get("measure")
    if not isinstance(measure, Mapping):
        return value
    for key in RETIRED:
        if key in measure:
            log.note(f"{where}: measure.{key} is left aside: {RETIRED[key]}")
    return {**value, "measure": current(measure)}


def _validated(value: Mapping[Any, Any], where: str) -> StudyFile:
    known = [*StudyFile.model_fields, *(f"measure.{name}" for name in MeasureOptions.model_fields)]
    try:
        return StudyFile(**{str(key): item for key, item in value.items()})
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, 'a study', known)}") from error


def _margin(given: float | dict[str, float] | None, task: Task, where: str) -> float | None:
    """Return the margin of the task's first metric, which verdicts use."""
    if given is None:
        return None
    if isinstance(given, dict):
        for name in given:
            if name not in task.metrics:
                raise ConfigError(f"{where}: margin names {name!r}; {nearest(name, task.metrics)}")
        if set(given) != {task.primary}:
            raise ConfigError(f"{where}: verdicts use {task.primary!r}; write margin: {{{task.primary}: NUMBER}}")
        given = given[task.primary]
    return check_margin(given, f"{where}: margin")


def _check_judges(task: Task, judges: Sequence[Judge]) -> None:
    """Refuse judges that share a name, or whose metrics read what they do not give. Raises ConfigError, TaskError."""
    task.check_metrics()
    names = [judge.name for judge in judges]
    for judge in judges:
        if names.count(judge.name) > 1 or not re.fullmatch(r"[\w-]+", judge.name):
            raise ConfigError(f"judge {judge.name!r}: give each a name of its own, of letters, digits and hyphens")
        judge.check_metrics()


def _check_unique(name: str, recipes: Sequence[Recipe], seeds: Sequence[int]) -> None:
    if not recipes or not seeds:
        raise ConfigError(f"study {name!r} needs at least one recipe and one seed")
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds {list(seeds)} repeat; list each seed once")
    taken: dict[str, str] = {}
    for recipe in recipes:
        place = slug(recipe.name).casefold()
        if place == REFERENCE:
            raise ConfigError(f"no recipe may be called {recipe.name!r}: that name is the uncompressed model's")
        if place in taken:
            other = taken[place]
            same = (
                "two recipes are called" if other == recipe.name else f"the recipe {other!r} shares its file name with"
            )
            raise ConfigError(f"{same} {recipe.name!r}; give each recipe a name of its own")
        taken[place] = recipe.name


def slug(recipe: str) -> str:
    """Return the file name of a recipe, the same that the report reads outcomes by."""
    return file_name(recipe)


def named(recipe: str, only: str | None) -> bool:
    """Tell whether `--only` asks for the recipe of this name."""
    return only is None or fnmatch.fnmatchcase(recipe, only)
