"""What methods share that train a language model on a teacher's next-token probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.architectures.folder import is_host
from lessen.architectures.loading import load_tokenizer
from lessen.errors import ConfigError, TaskError
from lessen.method import Context
from lessen.methods.adapt.lora import LoRA
from lessen.methods.distil._shared.distilled import Distilled, Scene, Taught
from lessen.methods.distil._shared.divergences import check_vocabulary
from lessen.methods.distil._shared.places import Places, ids_of, places
from lessen.methods.distil._shared.writing import Memory, Writer
from lessen.task import Task, main_tensor
from lessen.train.device import device_of, to_device
from lessen.train.nested import map_tensors
from lessen.train.taps import OUTPUT
from lessen.train.teachers import DistilHook, Teacher, evaluating
from lessen.usercode import boundary


class Speaking(Taught):
    """Trains a language model; texts are written in it."""

    task_weight: float = Field(0.0, ge=0, le=1e6, description="factor on the task's own loss")
    prompt: int | None = Field(
        None, ge=1, le=1 << 20, description="tokens a text begins with; none: what the labels leave out, or half a row"
    )
    sampling: float = Field(1.0, ge=0, le=100, description="temperature at which texts are written; 0: likeliest word")
    lora: int | None = Field(
        None, ge=1, le=4096, description="train low-rank corrections of this rank; none: all that is trainable"
    )

    def readied(self, student: nn.Module, context: Context) -> tuple[nn.Module, Callable[[], None]]:
        """Return the student, with corrections where `lora` is set. Raises NothingMatchedError, see `LoRA`."""
        if self.lora is None:
            return super().readied(student, context)
        return LoRA(rank=self.lora, alpha=2.0 * self.lora).wrapped(student, context)

    def _try(self, master: nn.Module, task: Task) -> None:
        """Leave it to `_check`."""

    def _check(self, master: nn.Module, student: nn.Module, task: Task, batch: Any) -> None:
        """Ask both about token 0 alone, which each has: a teacher with fewer tokens would fall over the others."""
        ids = ids_of(task, batch)
        zeros = map_tensors(batch, lambda tensor: torch.zeros_like(tensor) if tensor is ids else tensor)
        answers = []
        for who, model in (("student", student), ("teacher", master)):
            what = f"{self.card.name}: the {who}, a {type(model).__name__}, cannot answer batches of task {task.name!r}"
            with torch.no_grad(), evaluating(model), boundary(what):
                answers.append(task.forward(model, to_device(zeros, device_of(model))))
        check_answers(*answers)

    def _read(self, path: Path, task: Task, context: Context) -> nn.Module:
        own = getattr(task, "tokenizer", None)
        if own is not None and is_host(path) and (path / "tokenizer.json").is_file():
            theirs = load_tokenizer(path).get_vocab()
            if theirs != own.get_vocab():
                raise ConfigError(
                    f"{self.card.name}: the tokenizer of {path} has another vocabulary than task {task.name!r}: words "
                    "have other numbers there; give a teacher with the student's tokenizer"
                )
        return super()._read(path, task, context)


class LanguageDistilled(Speaking, Distilled):
    """Compares next-token probabilities, on the task's texts or on texts that the student writes as it trains."""

    on_policy: float = Field(0.0, ge=0, le=1, description="share of steps on texts that the student writes")
    memory: int = Field(0, ge=0, le=100_000, description="batches it wrote that are kept, to learn from again")
    fresh: float = Field(0.5, ge=0, le=1, description="chance to write anew although some are kept")

    def _asked(self, master: nn.Module, task: Task, batch: Any, context: Context) -> Teacher:
        if self.cache is not None and self.on_policy == 1:
            raise ConfigError(f"{self.card.name}: with on_policy = 1 no text comes again; leave `cache` out")
        return super()._asked(master, task, batch, context)


class TokenHook(DistilHook):
    """Base of comparisons of next-token probabilities: `term` gets the logits of both on the same texts."""

    def __init__(self, scene: Scene, method: LanguageDistilled) -> None:
        super().__init__(scene.teacher, main_tensor)
        self.task, self.given = scene.task, method
        self.generator = scene.context.generator
        self.writer = Writer(scene.task, method.prompt, method.sampling, self.generator)
        self.memory = Memory(method.memory, method.fresh, self.generator)

    def loss(self, model: nn.Module, batch: Any, loss: Tensor) -> Tensor:
        """Return the terms, weighted. Raises TaskError when the teacher has another vocabulary."""
        assert self._caught is not None
        student = self._caught.take()[OUTPUT]
        share = self.given.on_policy
        if share and float(torch.rand((), generator=self.generator)) < share:
            batch, seen, student, teacher = self.own_text(model, batch)
        else:
            seen, teacher = places(self.task, batch), self.teacher(batch)[OUTPUT]
            check_answers(student, teacher)
        total = self.given.weight * self.term(seen, student, teacher, batch)
        return total + self.given.task_weight * loss if self.given.task_weight else total

    def own_text(self, model: nn.Module, batch: Any) -> tuple[Any, Places, Tensor, Tensor]:
        """Return a text of the student: the batch, the places that count, and the logits of both on it."""
        batch, seen = self.recalled(model, batch)
        student, teacher = self.asked(model, batch), self.teacher.ask(batch)[OUTPUT]
        check_answers(student, teacher)
        return batch, seen, student, teacher

    def recalled(self, model: nn.Module, batch: Any) -> tuple[Any, Places]:
        """Return a batch that the student wrote, now or before."""
        found = self.memory.recall()
        if found is None:
            found = self.writer.write(model, batch)
            self.memory.keep(*found)
        return found

    def asked(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the student's logits with their graph."""
        assert self._caught is not None
        found = self.task.forward(model, batch)
        self._caught.caught = {}
        return found

    @abstractmethod
    def term(self, seen: Places, student: Tensor, teacher: Tensor, batch: Any) -> Tensor:
        """Return the scalar to minimise of logits [B, T, V] at the judged places."""


def check_answers(student: Tensor, teacher: Tensor) -> None:
    """Raise TaskError unless both answer token by token over one vocabulary."""
    if student.ndim != 3 or teacher.ndim != 3:
        raise TaskError(
            f"the teacher answers with shape {tuple(teacher.shape)}, the student with {tuple(student.shape)}; language "
            "models answer with logits [rows, tokens, vocabulary]"
        )
    check_vocabulary(student, teacher)
