"""What methods share that train a student with a teacher: finding the teacher, the student's start, the training."""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.architectures.folder import is_host
from lessen.artifact import folder as artifact
from lessen.capabilities import HasTeacher
from lessen.errors import ArtifactError, ConfigError, TaskError
from lessen.method import Context, Method
from lessen.methods import retrain
from lessen.task import Task, main_tensor
from lessen.train.device import device_of, to_device
from lessen.train.output_cache import OutputCache
from lessen.train.taps import Outputs, Taps
from lessen.train.teachers import DistilHook, Teacher, evaluating, open_teacher
from lessen.usercode import boundary

NEEDS = frozenset({"labels", "gradients", "training"})
CLAIMS = frozenset({"quality"})
ACTS_ON = ("model",)


@dataclass(frozen=True)
class Scene:
    """What a comparison is made for."""

    teacher: Teacher
    taps: tuple[str, ...]
    """Parts of the student that are compared beside its answer."""
    task: Task
    batch: Any
    """Shows what inputs look like."""
    student: nn.Module
    context: Context


class Trained(Method):
    """Trains a model by the task's settings."""

    later_knobs: ClassVar[frozenset[str]] = frozenset({"learning_rate", "minutes"})
    start: Literal["given", "fresh"] = Field("given", description="train on from the given weights, or a fresh build")
    epochs: int | None = Field(None, ge=1, le=100_000, description="cap on epochs; none: the task's settings")

    learning_rate: float | None = Field(None, gt=0, le=100, description="largest rate; none: the task's")
    minutes: float | None = Field(None, gt=0, le=1e6, description="cap on minutes of training; none: no cap")

    def paced(self, task: Task) -> Task:
        """Return the task with the settings of training that this step changes."""
        changes: dict[str, Any] = {}
        if self.learning_rate is not None:
            lowest = min(task.settings.minimum_learning_rate, self.learning_rate)
            changes = {"learning_rate": self.learning_rate, "minimum_learning_rate": lowest}
        if self.minutes is not None:
            changes["max_seconds"] = 60 * self.minutes
        return task.view(settings=dataclasses.replace(task.settings, **changes)) if changes else task

    def readied(self, student: nn.Module, context: Context) -> tuple[nn.Module, Callable[[], None]]:  # noqa: ARG002
        """Return the student as it trains, and what is done to it afterwards."""
        return student, lambda: None

    def _student(self, model: nn.Module, task: Task, context: Context) -> tuple[nn.Module, Callable[[], None]]:
        student = retrain.fresh(model, task, context) if self.start == "fresh" else model
        return self.readied(student.to(context.device), context)


class Taught(Trained):
    """Trains a model with the help of a teacher."""

    teacher: str | None = Field(
        None,
        description="artifact, Hugging Face folder or GGUF file; none: the task's teacher, "
        "or else the model that the recipe was given",
    )
    weight: float = Field(1.0, ge=0, le=1e6, description="factor on the teacher's term")
    task_weight: float = Field(1.0, ge=0, le=1e6, description="factor on the task's own loss")

    # -- the teacher ----------------------------------------------------------------------------------------------
    def _master(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        if self.teacher is not None:
            context.findings["teacher"] = self.teacher
            master = self._read(Path(self.teacher), task, context).to(context.device)
            self._try(master, task)
            return master
        if isinstance(task, HasTeacher):
            context.findings["teacher"] = "the task's"
            master = task.teacher(context.seed)
            if not isinstance(master, nn.Module):
                raise TaskError(
                    f"{self.card.name}: teacher(seed) of task {task.name!r} gives {type(master).__name__}; let it "
                    "return a torch module that answers the task's batches"
                )
            master = master.to(context.device)
            self._try(master, task)
            return master
        original = context.original
        if original is None or (self.start == "given" and _same(original, model)):
            raise TaskError(
                f"{self.card.name} has nobody to learn from: task {task.name!r} brings no teacher, and no earlier step "
                "changed the model; give teacher: PATH, put the step after one that compresses, or set start: fresh"
            )
        context.findings["teacher"] = "the given model"
        return copy.deepcopy(original)

    def _try(self, master: nn.Module, task: Task) -> None:
        """Ask once. Raises InputError where the teacher falls over what the task gives."""
        batch = to_device(task.example_batch(), device_of(master))
        what = f"{self.card.name}: the teacher, a {type(master).__name__}, cannot answer batches of task {task.name!r}"
        with torch.no_grad(), evaluating(master), boundary(what):
            task.forward(master, batch)

    def _read(self, path: Path, task: Task, context: Context) -> nn.Module:
        if (path / artifact.MANIFEST).is_file():
            try:
                return artifact.load(path)
            except ArtifactError:  # of a model of the user's own, whose architecture is the task's
                with torch.random.fork_rng(devices=[]):
                    return artifact.load(path, model=task.build())
        if is_host(path) or path.suffix == ".gguf":
            return open_teacher(path, context.log)
        raise ConfigError(f"{self.card.name}: no teacher at {path}; give an artifact, a Hugging Face folder or a .gguf")

    def _compare(self, master: nn.Module, student: nn.Module, task: Task, context: Context) -> None:
        """Say it when the teacher is no better than its student: not an error, but seldom what was meant."""
        scores = {}
        for who, one in (("teacher", master), ("student", student)):
            try:
                scores[who] = task.score(one, "validation")
            except (TaskError, ValueError, RuntimeError):  # a teacher may answer in another form than the judge reads
                return
        context.findings["score_before"] = {who: value for who, value in scores.items() if math.isfinite(value)}
        if scores["teacher"] <= scores["student"]:
            context.log.note(
                f"{self.card.name}: the teacher scores {scores['teacher']:.4g} on validation, no better than the "
                f"student at its start, {scores['student']:.4g}"
            )


class Distilled(Taught):
    """Adds a term to the task's loss that compares the student with its teacher."""

    cache: str | None = Field(
        None, description="folder for the teacher's outputs, for rows that come again unchanged; none: ask each time"
    )
    cache_bytes: int = Field(1 << 30, ge=1, le=1 << 44, description="most bytes of that folder")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train and return the student.

        Raises:
            TaskError: the task cannot train, or there is nobody to learn from.
            ConfigError, ArtifactError: the teacher cannot be read, or the cache is another teacher's.
            NonFiniteError: the teacher gave NaN or infinity.
        """
        master = self._master(model, task, context)
        student, settle = self._student(model, task, context)
        batch = task.example_batch()
        teacher = self._asked(master, task, batch, context)
        self._check(master, student, task, batch)
        teacher.ask(batch)  # what cannot teach is refused before anything is trained
        hook = self.hook(Scene(teacher, self.student_taps(student, task, batch), task, batch, student, context))
        self._compare(master, student, task, context)
        retrain.train(student, self.paced(task), context, epochs=self.epochs, hooks=(hook,))
        settle()
        return student

    # -- what a method decides ------------------------------------------------------------------------------------
    def _check(self, master: nn.Module, student: nn.Module, task: Task, batch: Any) -> None:
        """Refuse a pair that cannot be compared, before the teacher is asked."""

    def student_taps(self, student: nn.Module, task: Task, batch: Any) -> tuple[str, ...]:  # noqa: ARG002
        """Return the parts of the student that are compared beside its answer."""
        return ()

    def teacher_taps(self, master: nn.Module, task: Task, batch: Any) -> tuple[str, ...]:  # noqa: ARG002
        """Return the parts of the teacher that are compared beside its answer."""
        return ()

    @abstractmethod
    def hook(self, scene: Scene) -> DistilHook:
        """Return what compares the student with the teacher."""

    def _asked(self, master: nn.Module, task: Task, batch: Any, context: Context) -> Teacher:
        taps = self.teacher_taps(master, task, batch)
        return Teacher(master, task.forward, taps=taps, cache=self._cache(context))

    def _cache(self, context: Context) -> OutputCache | None:
        return None if self.cache is None else OutputCache(Path(self.cache), self.cache_bytes, context.log)


def _same(left: nn.Module, right: nn.Module) -> bool:
    one, other = left.state_dict(), right.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        for name, value in one.items()
    )


@torch.no_grad()
def probe(model: nn.Module, taps: tuple[str, ...], task: Task, batch: Any) -> Outputs:
    """Return what the tapped parts of a model give for a batch, to learn their shapes."""
    watched = Taps(model, taps, main_tensor, training_only=False)
    try:
        with evaluating(model):
            task.forward(model, to_device(batch, device_of(model)))
        return watched.take()
    finally:
        watched.remove()
