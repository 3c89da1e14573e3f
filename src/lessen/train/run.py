"""The state of one training, one step of it, and what a checkpoint holds of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import ArtifactError, NonFiniteError, TaskError
from lessen.train.checkpoint import CAPS, load_checkpoint, save_checkpoint
from lessen.train.device import generator_state, restore_generator, to_device
from lessen.train.hooks import Hook
from lessen.train.nested import count_rows, count_tokens, digest_of_tensors
from lessen.train.optimizers import TableDecay, build_optimizers, clip_norm, make_dense, set_learning_rate
from lessen.train.schedules import Schedule
from lessen.train.settings import FitSettings, ParameterGroup
from lessen.train.stream import Piece, Stream

MINIMUM_GAIN = 1e-6
"""A validation score must rise by more than this to count as an improvement (the rule of FuxiCTR and BARS)."""

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass
class FitResult:
    """What training did."""

    best_score: float
    """Of the best epoch; NaN where nothing was validated."""
    best_epoch: int
    epochs: int
    steps: int
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)
    examples: int = 0
    """Rows of the batches that were learned from, repeats counted."""
    tokens: int = 0
    """Tokens of them, where batches hold `input_ids`."""


class Run:
    """One training on its way.

    Args:
        groups: who trains; none: every parameter of the model that requires gradients. Modules of hooks always do.
        total: steps of the whole training, where the schedule needs them.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: FitSettings,
        hooks: Sequence[Hook],
        stream: Stream,
        device: torch.device,
        *,
        seed: int,
        groups: Sequence[ParameterGroup] | None,
        total: int | None,
    ) -> None:
        self.model, self.settings, self.hooks, self.stream, self.device = model, settings, hooks, stream, device
        self.seed, self.ranks = seed, stream.ranks
        own = [p for hook in hooks if hook.module is not None for p in hook.module.parameters() if p.requires_grad]
        if groups is None:
            groups = [ParameterGroup([p for p in model.parameters() if p.requires_grad])]
        groups = [*groups, ParameterGroup(own)] if own else groups
        self.parameters = [p for group in groups for p in group.parameters]
        if not self.parameters:
            raise TaskError("the model has no trainable parameter; unfreeze one or skip training")
        self.optimizers = build_optimizers(model, settings, groups)
        self.decay = TableDecay(model, settings.table_l2)
        self.schedule = Schedule(settings, total)
        self.frozen = frozen_names(model)
        """Names of parameters that do not train: neither kept with the best weights nor in the checkpoint."""
        self.best: dict[str, Tensor] = {}
        self.best_score, self.best_epoch = -math.inf, 0
        self.epoch = self.step = self.misses = self.examples = self.tokens = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []

    @property
    def finished(self) -> bool:
        """Say whether a cap or the patience is reached."""
        settings = self.settings
        if settings.steps is not None:
            capped = self.step >= settings.steps
        else:
            capped = self.epoch >= settings.epochs
        late = settings.max_seconds is not None and self.seconds >= settings.max_seconds
        return capped or late or (settings.patience is not None and self.misses >= max(1, settings.patience))

    # -- one epoch ----------------------------------------------------------------------------------------------
    def train_epoch(self, loss: Loss, began: float) -> float:
        """Take the steps of an epoch and return the mean training loss, terms of hooks excluded.

        Args:
            began: when the epoch began, on the clock `time.perf_counter`.
        """
        self.model.train()
        for hook in self.hooks:
            if hook.module is not None:
                hook.module.train()
        total, count, seen = 0.0, 0, [0, 0]
        for group in self._groups():
            total += self._step(group, loss)
            count += 1
            seen = [
                seen[0] + sum(count_rows(p.batch) for p in group),
                seen[1] + sum(count_tokens(p.batch) for p in group),
            ]
            if self._late(began) or self.step == self.settings.steps:
                break
        examples, tokens = self.ranks.total(seen)
        self.examples, self.tokens = self.examples + examples, self.tokens + tokens
        return total / count

    def _groups(self) -> Iterator[list[Piece]]:
        each = self.settings.steps_per_epoch
        return self.stream.one_pass() if each is None else self.stream.across(each)

    def _late(self, began: float) -> bool:
        limit = self.settings.max_seconds
        return limit is not None and self.ranks.same(lambda: self.seconds + time.perf_counter() - began) >= limit

    def _step(self, group: list[Piece], loss: Loss) -> float:
        self.model.zero_grad(set_to_none=True)
        for hook in self.hooks:
            if hook.module is not None:
                hook.module.zero_grad(set_to_none=True)
            hook.learning_rate = self.schedule.rate(self.step)
        value = sum(self._backward(piece, loss, 1.0 / len(group)) for piece in group) / len(group)
        if self.settings.table_updates == "dense":
            make_dense(self.parameters)
        self.ranks.sum_gradients(self.parameters)
        self.decay.add_gradient()
        set_learning_rate(self.optimizers, self.schedule.rate(self.step))
        self.step += 1
        for hook in self.hooks:
            hook.before_step(self.model, self.step)
        if self.settings.clip_norm is not None:
            clip_norm(self.parameters, self.settings.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        for hook in self.hooks:
            hook.after_step(self.model, self.step)
        for hook in self.hooks:
            hook.scalars(self.step, {"loss": value, "learning_rate": self.schedule.rate(self.step - 1)})
        return value

    def _backward(self, piece: Piece, loss: Loss, share: float) -> float:
        """Add the gradients of one batch; return the task's loss, its mean over all processes."""
        self.ranks.weight = piece.weight
        batch = to_device(piece.batch, self.device)
        with self._precision():
            found = loss(self.model, batch)
            _check_scalar(found)
            value = self.ranks.mean_loss(found)
            self._check_finite(value, "the training loss")
            total = found
            for hook in self.hooks:
                total = hook.loss(self.model, batch, total)
        if self.hooks:
            self._check_finite(self.ranks.mean_loss(total), "the training loss with the terms of hooks")
        if not total.requires_grad:
            raise TaskError("the loss depends on no parameter that trains; unfreeze what it is computed from")
        scale = piece.weight * share
        (total if scale == 1.0 else total * scale).backward()  # type: ignore[no-untyped-call]
        return value

    def _precision(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _check_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{what} became {value} in epoch {self.epoch + 1}, step {self.step + 1}; "
                "look for NaN in the data or lower the learning rate"
            )

    # -- between epochs -----------------------------------------------------------------------------------------
    def judge(self, score: float | None, mean_loss: float, began: float) -> None:
        """Close the epoch: keep the best weights, or note a miss. Keep nothing and miss nothing without a score."""
        self.epoch += 1
        rate = self.schedule.rate(self.step - 1)
        if score is not None:
            self._take(score)
        for hook in self.hooks:
            hook.epoch_end(self.model, self.epoch, math.nan if score is None else score)
        seconds = self.ranks.same(lambda: time.perf_counter() - began)  # all must stop at the same epoch
        self.seconds += seconds
        judged = {} if score is None else {"score": score}
        self.history.append(
            {"epoch": self.epoch, "loss": mean_loss, **judged, "learning_rate": rate, "seconds": seconds}
        )
        for hook in self.hooks:
            hook.scalars(self.step, {"epoch": self.epoch, **judged})

    def _take(self, score: float) -> None:
        if not math.isfinite(score):
            raise NonFiniteError(f"the validation score became {score} in epoch {self.epoch}; lower the learning rate")
        if score > self.best_score + MINIMUM_GAIN:
            self.best_score, self.best_epoch, self.misses = score, self.epoch, 0
            if self.settings.keep == "best":
                self.best = trained_tensors(self.model, self.frozen)
        else:
            self.misses += 1
            self.schedule.missed()

    def finish(self) -> FitResult:
        """Put the weights to end with in place and report."""
        self.model.load_state_dict(self.best, strict=False)
        self.model.eval()
        scored = math.isfinite(self.best_score)
        return FitResult(
            self.best_score if scored else math.nan,
            self.best_epoch if scored else self.epoch,
            self.epoch,
            self.step,
            self.seconds,
            self.history,
            self.examples,
            self.tokens,
        )

    # -- checkpoint ---------------------------------------------------------------------------------------------
    def _identity(self) -> dict[str, Any]:
        """Return what a continuation must share; settings that have their default are left out, to read old files."""
        usual = asdict(FitSettings())
        settings = {k: v for k, v in asdict(self.settings).items() if k not in CAPS and v != usual[k]}
        frozen = {"frozen": self._digest_of_frozen} if self.frozen else {}
        return {"settings": settings, "seed": self.seed, **frozen}

    @cached_property
    def _digest_of_frozen(self) -> str:
        """A SHA-256 of the parameters that do not train, taken once."""
        state = self.model.state_dict()
        return digest_of_tensors({name: state[name] for name in self.frozen if name in state})

    def save(self, path: Path) -> None:
        """Write everything the next epoch depends on."""
        groups = {
            "model": trained_tensors(self.model, self.frozen),
            "best": self.best,
            "generator": self.ranks.states(),
            "device": generator_state(self.device),
            "hooks": self._hook_tensors(),
        }
        progress = {
            "epoch": self.epoch,
            "step": self.step,
            "misses": self.misses,
            "seconds": self.seconds,
            "best_score": self.best_score if self.best_epoch else None,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "learning_rate": self.schedule.level,
            "examples": self.examples,
            "tokens": self.tokens,
            "passes": self.stream.passes,
            "taken": self.stream.taken,
            "fall": [self.schedule.first, self.schedule.length],
        }
        if self.ranks.first:
            save_checkpoint(path, groups, self.optimizers, progress, self._identity())

    def restore(self, path: Path) -> None:
        """Continue where `save` stopped. Raises ArtifactError where the file is of another training."""
        groups, progress = load_checkpoint(
            path, self.optimizers, self.model, trained_tensors(self.model, self.frozen), self._identity()
        )
        schedule = self.schedule
        fall = progress.pop("fall", [0, 0])
        if fall != [schedule.first, schedule.length] and (
            schedule.falling(progress["step"]) or (fall[1] and progress["step"] > fall[0])
        ):
            raise ArtifactError(
                f"checkpoint {path} was written while the learning rate fell, in steps {fall[0]} to {sum(fall)}; "
                f"a fall in steps {schedule.first} to {schedule.first + schedule.length} cannot go on from there"
            )
        self.model.load_state_dict(groups["model"], strict=False)
        self._load_hooks(path, groups["hooks"])
        self.best = groups["best"]
        schedule.level = progress.pop("learning_rate")
        self.stream.seek(progress.pop("passes", progress["epoch"]), progress.pop("taken", 0))
        if progress["best_score"] is None:
            progress["best_score"] = -math.inf
        for key, value in progress.items():
            setattr(self, key, value)
        self.ranks.restore(groups["generator"])  # last: skipping batches may have drawn from it
        restore_generator(groups["device"], self.device)

    def _hook_tensors(self) -> dict[str, Tensor]:
        return {
            f"{number}.{key}": value
            for number, hook in enumerate(self.hooks)
            if hook.module is not None
            for key, value in hook.module.state_dict().items()
        }

    def _load_hooks(self, path: Path, tensors: dict[str, Tensor]) -> None:
        expected = {key: value.shape for key, value in self._hook_tensors().items()}
        if expected != {key: value.shape for key, value in tensors.items()}:
            raise ArtifactError(f"checkpoint {path} belongs to a training with other hooks; remove it first")
        for number, hook in enumerate(self.hooks):
            if hook.module is not None:
                prefix = f"{number}."
                hook.module.load_state_dict(
                    {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                )


def _check_scalar(loss: Tensor) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TaskError(f"the loss must be a tensor with one number, not {found}; average it over the batch")


def frozen_names(model: nn.Module) -> set[str]:
    """Return the names in the state dict of parameters that do not train."""
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


def trained_tensors(model: nn.Module, frozen: set[str]) -> dict[str, Tensor]:
    """Return copies of what training may change: parameters that are not `frozen`, and buffers.

    (Packed operators also keep values that are no tensors.)
    """
    return {
        key: value.detach().clone()
        for key, value in model.state_dict().items()
        if isinstance(value, Tensor) and key not in frozen
    }
