"""The suite `metrics`: the task's own metrics of both models side by side, each difference paired."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from lessen.errors import ConfigError, nearest
from lessen.judges.suite import Section, Suite, SuiteOptions, difference_of, table
from lessen.metrics import Metric, Outcomes
from lessen.task import Task


class FiguresOptions(SuiteOptions):
    """What a user may say of the metrics."""

    only: list[str] | None = Field(None, description="metrics that are shown, of the task's own; None: all")


class Figures(Suite):
    """The means that everyone looks at first."""

    name, question = "metrics", "What do the means say?"
    metrics: Mapping[str, Metric] = {}
    Options = FiguresOptions
    always = 1

    def bind(self, task: Task | None) -> None:
        """Take the task's metrics for its own. Raises ConfigError: a metric that is not the task's."""
        super().bind(task)
        if self._task is None:
            return
        for name in self.options.only or ():
            if name not in self.task.metrics:
                raise ConfigError(
                    f"{name!r} is no metric of task {self.task.name!r}; {nearest(name, self.task.metrics)}"
                )
        self.metrics = {
            n: m for n, m in self.task.metrics.items() if self.options.only is None or n in self.options.only
        }

    def compare(self, before: Outcomes, after: Outcomes) -> Section:
        """Return the metrics of both models; caught is a loss of which the whole interval is a loss."""
        before.check_same_units(after)
        rows, caught, figures = [], [], {}
        for name, metric in self.metrics.items():
            row, found = difference_of(name, metric, before, after)
            rows.append(row)
            figures[name] = found
            if _lost(found, metric):
                caught.append(f"{metric.title or name} is worse: {row[3]}")
        columns = ("metric", "uncompressed", "compact", "difference [95 %]")
        return Section(self.name, self.question, tuple(caught), (), (table("", columns, rows),), figures)


def _lost(found: Mapping[str, Any], metric: Metric) -> bool:
    low, high = found["low"], found["high"]
    return low is not None and high is not None and (high < 0 if metric.higher_is_better else low > 0)
