"""The judge `selection`: a task on its validation rows, so that a search never chooses on the test set."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from lessen.metrics import Outcomes
from lessen.task import Judge, Split, Task, TaskOptions
from lessen.tasks import get_task


class SelectionOptions(TaskOptions):
    """What a study may set beside the judge's name."""

    task: str | dict[str, Any] = Field(description="task whose validation rows are judged, with its options")


class Selection(Judge):
    """A task's metrics on its validation split, whichever split is asked for."""

    name = "selection"
    Options = SelectionOptions

    def __init__(self, options: SelectionOptions) -> None:
        self._of(get_task(options.task, f"judge {self.name}: task", own=True))

    @classmethod
    def of(cls, task: Task) -> Selection:
        """Return the judge of a task, which another process makes by its name where the task has one."""
        judge = cls.__new__(cls)
        judge._of(task)
        if task.origin is not None or task.Options is not None:
            judge.origin = judge.describe()
        return judge

    def _of(self, task: Task) -> None:
        self.task, self.metrics = task, task.metrics
        # another judge of the same outcomes knows which columns they have; none is claimed where the task does not say
        self.columns = task.columns

    def outcomes(self, model: Any, split: Split = "test") -> Outcomes:  # noqa: ARG002 - one split is the point
        """Return what happened on each validation unit.

        Raises:
            TaskError: the task has no validation rows: a search would have to choose on its test set.
        """
        return self.task.outcomes(model, "validation")

    def fingerprint(self) -> str:
        """Return the digest of the task's data."""
        return f"selection-{self.task.fingerprint()}"

    def describe(self) -> dict[str, Any]:
        """Return the name, and the task where it can be named."""
        return {"name": self.name, "task": dict(self.task.origin or self.task.describe())}
