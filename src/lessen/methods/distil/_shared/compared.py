"""Methods that compare features of one layer each of student and teacher."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from lessen.methods.distil._shared.distilled import Distilled
from lessen.methods.distil._shared.features import penultimate
from lessen.task import Task


class ComparedFeatures(Distilled):
    """Taps one layer of each; unless named, the features before the head."""

    layer: str | None = Field(
        None, description="path of the student's layer, PATH:input for what goes into it; none: what enters the head"
    )
    teacher_layer: str | None = Field(
        None, description="path of the teacher's layer, PATH:input for what goes into it; none: what enters its head"
    )

    def student_taps(self, student: nn.Module, task: Task, batch: Any) -> tuple[str, ...]:
        """Return the student's layer. Raises TaskError when none is named and none is found."""
        return (self.layer or penultimate(student, task.forward, batch),)

    def teacher_taps(self, master: nn.Module, task: Task, batch: Any) -> tuple[str, ...]:
        """Return the teacher's layer. Raises TaskError when none is named and none is found."""
        return (self.teacher_layer or penultimate(master, task.forward, batch),)
