"""What compression has reached while a model trains: bytes, zeros, multiply-adds, and the room left under a margin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lessen.artifact.folder import stored_size
from lessen.artifact.state import unwrapped
from lessen.errors import ConfigError, EnvironmentFault, MissingExtraError
from lessen.measure.record import count_macs
from lessen.stored.serving import served
from lessen.task import Task
from lessen.train.fit import FitResult
from lessen.train.hooks import Hook

MULTIPLYING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose zeros are counted, where their weight is what is multiplied with."""


class Watch:
    """Measures a model on its way: `watch(model)` gives figures by name. The model is left as it is.

        stored_bytes, stored_bytes_share   of the artifact it would be now; share of the reference's
        zeros                              share of zeros among the weights of linear layers and convolutions
        macs, macs_share                   multiply-adds of an example
        auc                                the task's first metric on its validation rows, under its own name
        lost, room                         what that is worse than the reference; the margin minus that

    Masks and fake quantisation (parametrisations) count as they are in eval mode. Where the form comes at the end only,
    as for N of M or int8, `finished` makes it: all figures but `zeros` are then of what it returns.

    Args:
        task: judges and counts multiply-adds; None: bytes, zeros and `quality` alone.
        reference: the model before compression, trained; None: no shares and no loss.
        margin: largest loss that you accept, in the metric's unit; None: no room is told.
        quality: score in place of the task's metric, higher is better; told as `quality`.
        finished: makes the model as it would be stored, from a copy in eval mode without parametrisations.

    Raises:
        ConfigError: a margin without a reference, or without anything that judges.
    """

    def __init__(
        self,
        task: Task | None = None,
        *,
        reference: nn.Module | None = None,
        margin: float | None = None,
        quality: Callable[[nn.Module], float] | None = None,
        finished: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        judge = quality or (task.score if task is not None else None)
        if margin is not None and (reference is None or judge is None):
            raise ConfigError("Watch(margin=...) needs a reference, and a task or quality=, to measure the loss with")
        self.task, self.margin, self._judge, self._finished = task, margin, judge, finished
        self._named = "quality" if quality is not None else task.primary if task is not None else ""
        falls = task is not None and quality is None and not task.metrics[task.primary].higher_is_better
        self._sign = -1 if falls else 1
        self._before = None if reference is None else self._figures(plain_copy(reference), plain_copy(reference))

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the figures of `model` as it is now.

        Raises:
            TaskError: nothing can be judged, as in a study.
            ArtifactError: what `finished` returns cannot be stored.
        """
        plain = plain_copy(model)
        compact = plain if self._finished is None else self._finished(copy.deepcopy(plain))
        found, before = self._figures(compact, plain), self._before
        found["zeros"] = zeros(plain)
        if before is not None:
            for name in ("stored_bytes", "macs"):
                if found.get(name) is not None and before.get(name):
                    found[f"{name}_share"] = found[name] / before[name]
            if self._named:
                found["lost"] = self._sign * (before[self._named] - found[self._named])
                if self.margin is not None:
                    found["room"] = self.margin - found["lost"]
        return found

    def _figures(self, model: nn.Module, base: nn.Module) -> dict[str, float]:
        """Return bytes, multiply-adds and the score, in the metric's own direction."""
        found: dict[str, float] = {"stored_bytes": stored_size(model, base)}
        if self.task is not None:
            macs = count_macs(self.task, model)
            found |= {} if macs is None else {"macs": macs}
        if self._judge is not None:
            with served(model), torch.no_grad():
                found[self._named] = self._sign * self._judge(model)
        return found


class WatchHook(Hook):
    """Tells what a `Watch` measures after each epoch of `fit`, as `to({"zeros": 0.4, ...}, step=7)`.

    It is a hook of `fit` and `Task.train`; `watched(task, hook)` brings it into the training that a method does.

    Args:
        to: `mlflow.log_metrics`, `wandb.log`, or any callable that takes a mapping and the keyword `step`.
        every: epochs between two measurements.

    Raises:
        ConfigError: `every` is below 1.
    """

    def __init__(self, watch: Watch, to: Callable[..., Any], every: int = 1) -> None:
        if every < 1:
            raise ConfigError(f"WatchHook(every={every}) is not accepted: measure each epoch (1) or fewer of them")
        self.watch, self.to, self.every, self._step = watch, to, every, 0

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Know how far the training is."""
        self._step = step

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:  # noqa: ARG002
        """Measure when it is time."""
        if epoch % self.every == 0:
            self.to(self.watch(model), step=self._step)


def watched(task: Task, hook: Hook) -> Task:
    """Return the same task, under whose training a method is watched: `recipe.apply(model, watched(task, hook))`."""

    def train(model: nn.Module, *, hooks: tuple[Hook, ...] = (), **given: Any) -> FitResult:
        return task.train(model, hooks=(*hooks, hook), **given)

    return task.view(train=train)


def trainer_watch(watch: Watch, to: Callable[..., Any] | None = None) -> Any:
    """Return a TrainerCallback that measures after each evaluation of the Hugging Face Trainer.

    The figures stand in the evaluation's metrics, `eval_stored_bytes` and so on, so that `metric_for_best_model` and
    early stopping can name them, and in the Trainer's `log_history`.

    Args:
        to: told as well, as `to({"zeros": 0.4, ...}, step=7)`: `mlflow.log_metrics`, `wandb.log`.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingExtraError("hf", "transformers", "the Trainer callback") from error

    class WatchCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
        """Measures where the Trainer has evaluated."""

        def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
            if not state.is_world_process_zero:
                return
            found = watch(given["model"])
            named = {f"eval_{name}": value for name, value in found.items()}
            given["metrics"].update(named)
            state.log_history.append({**named, "step": state.global_step, "epoch": state.epoch})
            if to is not None:
                to(found, step=state.global_step)

    return WatchCallback()


def lightning_watch(watch: Watch, prefix: str = "lessen/") -> Any:
    """Return a Lightning callback that measures after each validation and logs the figures as `lessen/zeros` and so on.

    They reach every logger of the trainer, and `ModelCheckpoint` and `EarlyStopping` can monitor them. What is measured
    is the LightningModule, whose forward the task must be able to call.

    Raises:
        EnvironmentFault: Lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError as error:
            raise EnvironmentFault("the Lightning callback needs Lightning; pip install lightning") from error

    class WatchCallback(Callback):  # type: ignore[misc,unused-ignore]
        """Measures where Lightning has validated."""

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                found = {f"{prefix}{name}": float(value) for name, value in watch(pl_module).items()}
                pl_module.log_dict(found, rank_zero_only=True)

    return WatchCallback()


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose parametrisations (masks, fake quantisation) have become its weights."""
    made = copy.deepcopy(unwrapped(model)).eval()
    for module in list(made.modules()):  # a list: the tree changes
        if parametrize.is_parametrized(module):
            _bake(module)
    return made


def _bake(module: nn.Module) -> None:
    """Make what parametrisations give a module's own. torch's removal takes the weight of the original, too.

    That one deletes the property of a class which a copy shares with its original; here only the copy changes class.
    """
    given: Any = module.parametrizations
    values = {name: getattr(module, name).detach().clone() for name in given}
    is_parameter = {name: isinstance(getattr(given[name], "original", None), nn.Parameter) for name in given}
    del module.parametrizations
    module.__class__ = type(module).__mro__[1]
    for name, value in values.items():
        if is_parameter[name]:
            module.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))
        else:
            module.register_buffer(name, value)


def zeros(model: nn.Module) -> float:
    """Return the share of zeros among the weights of linear layers and convolutions; 0 where there are none."""
    weights = [module.weight.detach() for module in model.modules() if isinstance(module, MULTIPLYING)]
    count = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / count if count else 0.0
