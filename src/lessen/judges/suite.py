"""What a suite of the report card is: a judge that looks at two models and says, in words, what it found.

class Polite(Suite):                               # third parties: entry point `lessen.judges`; users: FILE.py:NAME
    name, question = "polite", "Does it still say please?"
    metrics = {"share": SomeMetric()}
    Options = SuiteOptions
    def outcomes(self, model, split="test"): ...   # one row a unit, as any judge
    def compare(self, before, after): ...          # optional: a Section; by default the metrics side by side
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from torch import nn

from lessen import files
from lessen.errors import ConfigError, TaskError
from lessen.metrics import Array, Metric, Outcomes
from lessen.metrics.intervals import crossed_interval
from lessen.task import Judge, Split, Task, TaskOptions
from lessen.tasks import get_task


class CannotAnswer(TaskError):
    """A suite asks what this model or this task has no answer to; the message says why, in one line."""


@dataclass(frozen=True)
class Table:
    """Figures of a section, as text: one heading a column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """What one suite found."""

    name: str
    question: str
    caught: tuple[str, ...] = ()
    """Faults that the figures prove, a sentence each; empty: the suite stays silent."""
    lines: tuple[str, ...] = ()
    """What a reader should know beside them."""
    tables: tuple[Table, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The numbers behind the words: JSON values only."""

    def record(self) -> dict[str, Any]:
        """Return the section as JSON values."""
        return asdict(self)


class SuiteOptions(TaskOptions):
    """What every suite may be told."""

    task: str | dict[str, Any] | None = Field(None, description="task whose data are used; by default the model's own")


class Suite(Judge):
    """A judge of one question about a compact model beside its uncompressed one."""

    question: str
    Options: ClassVar[type[TaskOptions] | None] = None

    always: ClassVar[int] = 0
    """Its place on a card that asks for no suite by name; 0: it is asked by name only."""

    def __init__(self, options: Any = None, task: Task | None = None) -> None:
        """Ask about models of `task`, or of the one that the options name."""
        self.options: Any = options if options is not None else (type(self).Options or SuiteOptions)()
        self._task = task

    def bind(self, task: Task | None) -> None:
        """Take `task` for the task whose data are used, unless there is one. Raises ConfigError: an unknown task."""
        named = getattr(self.options, "task", None)
        if task is not None and (named is None or dict(task.origin or task.describe()) == named):
            self._task = task
        elif named is not None and self._task is None:
            self._task = get_task(named, f"judge {self.name}: task", own=True)

    def lend(self, task: Task, shared: Task) -> None:
        """Use `shared`, which judges a model once for all suites, where the suite's task is `task`."""
        if self._task is task:
            self._task = shared

    @property
    def task(self) -> Task:
        """The task whose data are used. Raises ConfigError: none was named."""
        if self._task is None:
            raise ConfigError(f"judge {self.name!r} needs a task: write {{name: {self.name}, task: NAME}}")
        return self._task

    def outcomes(self, model: nn.Module, split: Split = "test") -> Outcomes:
        """Return the task's own outcomes; a suite with questions of its own overrides it."""
        return self.task.outcomes(model, split)

    def unable(self, model: nn.Module) -> str:  # noqa: ARG002 - for suites that need something of a model
        """Return in one line why this model cannot be asked, or an empty string; nothing long is computed."""
        return ""

    def check_able(self, model: nn.Module) -> None:
        """Refuse a model that cannot be asked. Raises CannotAnswer."""
        why = self.unable(model)
        if why:
            raise self.refuse(why)

    def refuse(self, why: str) -> CannotAnswer:
        """Return the error that says why there is no answer."""
        return CannotAnswer(f"suite {self.name!r}: {why}")

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return what the outcomes of the uncompressed and of the compact model say."""
        return compared(self, before, after)

    def fingerprint(self) -> str:
        """Return the digest of the task's data and of what is asked of them."""
        asked = files.canonical({"name": self.name, **self.options.model_dump(mode="json")})
        return files.digest(self.task.fingerprint().encode() + asked)

    def describe(self) -> dict[str, Any]:
        """Return name and options."""
        return {"name": self.name, **self.options.model_dump(mode="json")}


def compared(judge: Judge, before: Outcomes, after: Outcomes) -> Section:
    """Return the metrics of two models side by side, with the paired 95 % interval of each difference."""
    before.check_same_units(after)
    rows, figures, caught = [], {}, []
    for name, metric in judge.metrics.items():
        row, figure = difference_of(name, metric, before, after)
        rows.append(row)
        figures[name] = figure
        low, high = figure["low"], figure["high"]
        loss = None if low is None or high is None else (-high if metric.higher_is_better else low)
        if loss is not None and loss > 0:
            caught.append(f"{metric.title or name} is worse: {row[3]}")
    columns = ("figure", "uncompressed", "compact", "difference [95 %]")
    question = getattr(judge, "question", f"What does the judge {judge.name!r} say?")
    return Section(judge.name, question, tuple(caught), (), (Table("", columns, tuple(rows)),), figures)


def difference_of(
    name: str, metric: Metric, before: Outcomes, after: Outcomes
) -> tuple[tuple[str, str, str, str], dict[str, Any]]:
    """Return one metric of two models as a row of a table and as numbers."""
    one, two = metric.jackknife(before), metric.jackknife(after)
    low, high = crossed_interval((two - one)[:, None], metric.resolution(before))
    first, second = float(one[0]), float(two[0])
    row = (metric.title or name, f"{first:.4g}", f"{second:.4g}", spoken(second - first, low, high))
    return row, {"before": first, "after": second, "difference": second - first, "low": low, "high": high}


def spoken(value: float, low: float | None, high: float | None, digits: int = 4) -> str:
    """Return a difference with its interval in words of a table."""
    ends = "no interval" if low is None or high is None else f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{value:+.{digits}f} {ends}"


def share(value: float, low: float | None = None, high: float | None = None) -> str:
    """Return a share in per cent, with its interval if there is one."""
    text = f"{100 * value:.2f} %"
    return text if low is None or high is None else f"{text} [{100 * low:.2f}, {100 * high:.2f}]"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of text."""
    return Table(title, tuple(columns), tuple(tuple(row) for row in rows))


def grouped_change(
    before: Outcomes, after: Outcomes, column: str, members: Array, wider: float = 1.0
) -> tuple[float, float, float, float]:
    """Return a rate of both models and the interval of its change, with one group of units left out at a time.

    Args:
        wider: factor of the interval's width, for several that hold at once.
    """
    one, two = (each[column][members].astype(np.float64) for each in (before, after))
    group = np.unique(before["group"][members], return_inverse=True)[1].reshape(-1)
    moved, size = two - one, np.bincount(group).astype(np.float64)
    value = float(moved.mean())
    if len(size) < 2:
        return float(one.mean()), float(two.mean()), -1.0, 1.0
    left = (moved.sum() - np.bincount(group, moved)) / (len(moved) - size)
    low, high = crossed_interval(np.concatenate([[value], left])[:, None], 3.0 / len(size))
    ends = (
        (-1.0, 1.0) if low is None or high is None else (value + wider * (low - value), value + wider * (high - value))
    )
    return float(one.mean()), float(two.mean()), float(ends[0]), float(ends[1])
