"""The one training loop: early stopping, plateau decay, best-weights restore, exact resume, hooks.

Methods that train never write a loop of their own; they pass hooks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError, NonFiniteError, TaskError
from lessen.log import SILENT, Log
from lessen.train.checkpoint import load_checkpoint, save_checkpoint
from lessen.train.hooks import Hook
from lessen.train.optimizers import (
    TableDecay,
    build_optimizers,
    clip_norm,
    learning_rate,
    let_sparse,
    set_learning_rate,
    trainable_tables,
)
from lessen.train.parallel import ALONE, Group
from lessen.train.settings import FitSettings

MINIMUM_GAIN = 1e-6
"""A validation score must rise by more than this to count as an improvement (the rule of FuxiCTR and BARS)."""


@dataclass
class FitResult:
    """What training did."""

    best_score: float
    best_epoch: int
    epochs: int
    steps: int
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    model: nn.Module,
    *,
    batches: Callable[[int], Iterable[Any]],
    loss: Callable[[nn.Module, Any], Tensor],
    validate: Callable[[nn.Module], float],
    settings: FitSettings,
    hooks: Sequence[Hook] = (),
    seed: int = 0,
    log: Log = SILENT,
    checkpoint: Path | None = None,
    ranks: Group = ALONE,
) -> FitResult:
    """Train `model` in place and leave it in eval mode with the weights of its best epoch.

    Args:
        batches: gives the batches of epoch 1, 2, ...
        validate: score of the model, higher is better, called once an epoch.
        seed: seeds dropout and whatever else draws from torch's global generator, whose state is given back after.
        checkpoint: if given, the state is saved there after each epoch, and training continues from it so that the
            result equals an undisturbed run bit for bit. State that a hook keeps outside the model is not saved.
        ranks: the processes that train together (`lessen.train.parallel.group`). Each calls this with the same model,
            settings and batches; the first one validates and writes the checkpoint.

    Raises:
        TaskError: the train split is empty, or the model has nothing to train.
        NonFiniteError: the loss or the validation score became NaN or infinite.
        ArtifactError: the checkpoint is damaged or belongs to another training.
        ConfigError: several processes cannot train with these hooks.
    """
    if hooks and ranks.size > 1:
        raise ConfigError("hooks see the rows of one process only; train with one process, or without hooks")
    ranks.spread(model)
    with torch.random.fork_rng(), _prepared(model, settings, hooks), ranks.shared_norms(model):
        torch.manual_seed(ranks.seed(seed))
        for hook in hooks:
            hook.start(model)
        run = _Run(model, settings, hooks, seed, ranks)
        if checkpoint is not None and checkpoint.exists():
            run.restore(checkpoint)
        while not run.finished:
            began = time.perf_counter()
            mean_loss = run.train_epoch(ranks.shard(batches(run.epoch + 1)), loss)
            ranks.close_epoch(model)
            run.judge(ranks.same(lambda: validate(model)), mean_loss, began)
            if checkpoint is not None:
                run.save(checkpoint)
            log.progress("training", settings.epochs if run.finished else run.epoch, settings.epochs)
    return run.finish()


@contextmanager
def _prepared(model: nn.Module, settings: FitSettings, hooks: Sequence[Hook]) -> Iterator[None]:
    """Let tables give sparse gradients where the settings ask for it; undo that and the hooks at the end."""
    tables = [] if settings.table_updates == "dense" else trainable_tables(model)
    undo = [let_sparse(table) for table in tables]
    try:
        yield
    finally:
        for back in undo:
            back()
        for hook in hooks:
            hook.finish(model)


class _Run:
    """The state of one training: what a checkpoint holds."""

    def __init__(self, model: nn.Module, settings: FitSettings, hooks: Sequence[Hook], seed: int, ranks: Group) -> None:
        self.model, self.settings, self.hooks, self.seed, self.ranks = model, settings, hooks, seed, ranks
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise TaskError("the model has no trainable parameter; unfreeze one or skip training")
        self.optimizers = build_optimizers(model, settings)
        self.decay = TableDecay(model, settings.table_l2)
        self.best: dict[str, Tensor] = {}
        self.best_score, self.best_epoch = -math.inf, 0
        self.epoch = self.step = self.misses = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []

    @property
    def finished(self) -> bool:
        """Say whether the cap or the patience is reached."""
        return self.epoch >= self.settings.epochs or self.misses >= max(1, self.settings.patience)

    def train_epoch(self, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor]) -> float:
        """Take one step a batch and return the mean training loss, penalties of hooks excluded."""
        self.model.train()
        total, count = 0.0, 0
        for batch in batches:
            total += self._step(loss(self.model, batch))
            count += 1
        if count == 0:
            raise TaskError("the train split is empty: no batch to learn from; give it rows or choose another split")
        return total / count

    def _step(self, loss: Tensor) -> float:
        value = self.ranks.mean_loss(loss)
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the training loss became {value} in epoch {self.epoch + 1}, step {self.step + 1}; "
                "look for NaN in the data or lower the learning rate"
            )
        penalties = [term for hook in self.hooks if (term := hook.penalty(self.model)) is not None]
        self.model.zero_grad(set_to_none=True)
        sum(penalties, loss * self.ranks.weight if self.ranks.size > 1 else loss).backward()  # type: ignore[no-untyped-call]
        self.ranks.sum_gradients(self.parameters)
        self.decay.add_gradient()
        self.step += 1
        for hook in self.hooks:
            hook.before_step(self.model, self.step)
        if self.settings.clip_norm is not None:
            clip_norm(self.parameters, self.settings.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        for hook in self.hooks:
            hook.after_step(self.model, self.step)
        return value

    def judge(self, score: float, mean_loss: float, began: float) -> None:
        """Close the epoch: keep the best weights, or lower the learning rate and count a miss."""
        self.epoch += 1
        if not math.isfinite(score):
            raise NonFiniteError(f"the validation score became {score} in epoch {self.epoch}; lower the learning rate")
        rate = learning_rate(self.optimizers)
        if score > self.best_score + MINIMUM_GAIN:
            self.best_score, self.best_epoch, self.misses = score, self.epoch, 0
            self.best = _tensors(self.model)
        else:
            self.misses += 1
            lower = max(rate * self.settings.plateau_factor, self.settings.minimum_learning_rate)
            set_learning_rate(self.optimizers, min(rate, lower))
        for hook in self.hooks:
            hook.epoch_end(self.model, self.epoch, score)
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.history.append(
            {"epoch": self.epoch, "loss": mean_loss, "score": score, "learning_rate": rate, "seconds": seconds}
        )

    def finish(self) -> FitResult:
        """Put the best weights back and report."""
        self.model.load_state_dict(self.best, strict=False)
        self.model.eval()
        return FitResult(self.best_score, self.best_epoch, self.epoch, self.step, self.seconds, self.history)

    # -- checkpoint -------------------------------------------------------------------------------------------
    def _identity(self) -> dict[str, Any]:
        settings = {key: value for key, value in asdict(self.settings).items() if key != "epochs"}
        return {"settings": settings, "seed": self.seed}

    def save(self, path: Path) -> None:
        """Write everything the next epoch depends on."""
        groups = {"model": _tensors(self.model), "best": self.best, "generator": self.ranks.states()}
        progress = {
            "epoch": self.epoch, "step": self.step, "misses": self.misses, "seconds": self.seconds,
            "best_score": self.best_score, "best_epoch": self.best_epoch, "history": self.history,
            "learning_rate": learning_rate(self.optimizers),
        }  # fmt: skip
        if self.ranks.first:
            save_checkpoint(path, groups, self.optimizers, progress, self._identity())

    def restore(self, path: Path) -> None:
        """Continue where `save` stopped."""
        groups, progress = load_checkpoint(path, self.optimizers, _tensors(self.model), self._identity())
        self.model.load_state_dict(groups["model"], strict=False)
        self.best = groups["best"]
        self.ranks.restore(groups["generator"])
        set_learning_rate(self.optimizers, progress.pop("learning_rate"))
        for key, value in progress.items():
            setattr(self, key, value)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the tensors of a state dict (packed operators also keep values that are no tensors)."""
    return {key: value.detach().clone() for key, value in model.state_dict().items() if isinstance(value, Tensor)}
