"""The one training loop: schedules, early stopping, accumulation, precision, exact resume, hooks, many processes.

Methods that train never write a loop of their own; they pass hooks.

    batches(1), batches(2), ... -> groups of `accumulate` -> task's loss -> Hook.loss -> backward -> one step
    every epoch: validate -> best weights, patience, plateau -> checkpoint
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError, TaskError
from lessen.log import SILENT, Log
from lessen.train.device import device_of, find_device
from lessen.train.hooks import Hook
from lessen.train.optimizers import let_sparse, trainable_tables
from lessen.train.parallel import ALONE, Group
from lessen.train.run import FitResult, Run
from lessen.train.schedules import falls
from lessen.train.settings import FitSettings, ParameterGroup
from lessen.train.stream import Stream

__all__ = ["FitResult", "fit"]

Parameters = Sequence[nn.Parameter] | Sequence[ParameterGroup]


def fit(
    model: nn.Module,
    *,
    batches: Callable[[int], Iterable[Any]],
    loss: Callable[[nn.Module, Any], Tensor],
    validate: Callable[[nn.Module], float] | None,
    settings: FitSettings,
    hooks: Sequence[Hook] = (),
    parameters: Parameters | None = None,
    seed: int = 0,
    log: Log = SILENT,
    checkpoint: Path | None = None,
    ranks: Group = ALONE,
    device: str | torch.device | None = None,
) -> FitResult:
    """Train `model` in place and leave it in eval mode with the weights of its best epoch.

    Args:
        batches: gives the batches of pass 1, 2, ...; a schedule that falls needs `steps`, `steps_per_epoch` or the
            length of the first pass, which is gone through once if it does not tell.
        loss: scalar to minimise of the model and a batch; the batch is on the model's device.
        validate: score of the model, any that is higher for a better one, called once an epoch. None: no epoch is
            judged, training goes on to its cap, and the last weights stay.
        parameters: what trains, as parameters or as groups of them; the rest of the model is frozen meanwhile. None:
            what requires gradients. Groups must not overlap.
        seed: seeds dropout and whatever else draws from torch's global generator, whose state is given back after.
        checkpoint: if given, the state is saved there after each epoch, and training continues from it so that the
            result equals an undisturbed run bit for bit. State that a hook keeps outside the model and its `module`
            is not saved, nor are parameters that do not train. A higher cap continues.
        ranks: the processes that train together (`lessen.train.parallel.group`). Each calls this with the same model,
            settings and batches; the first one validates and writes the checkpoint.
        device: where the model is moved to and trained; None: where it is.

    Raises:
        TaskError: the train split is empty, the model has nothing to train, or the loss is no scalar of it.
        NonFiniteError: the loss or the validation score became NaN or infinite.
        ArtifactError: the checkpoint is damaged or belongs to another training.
        ConfigError: the settings, the hooks, the device and the processes cannot go together.
    """
    where = device_of(model) if device is None else find_device(device)
    groups = _groups(model, parameters)
    _check(model, settings, hooks, ranks, where, validated=validate is not None)
    model.to(where)
    ranks.spread(model)
    stream = Stream(batches, ranks, settings.accumulate)
    with torch.random.fork_rng(), _prepared(model, settings, hooks, groups), ranks.shared_norms(model):
        total = _total_steps(stream, settings)
        torch.manual_seed(ranks.seed(seed))
        for hook in hooks:
            hook.start(model)
            if hook.module is not None:
                ranks.spread(hook.module.to(where))
        run = Run(model, settings, hooks, stream, where, seed=seed, groups=groups, total=total)
        if checkpoint is not None and checkpoint.exists():
            run.restore(checkpoint)
        while not run.finished:
            began = time.perf_counter()
            mean_loss = run.train_epoch(loss, began)
            ranks.close_epoch(model)
            run.judge(None if validate is None else ranks.same(lambda: validate(model)), mean_loss, began)
            if checkpoint is not None:
                run.save(checkpoint)
            _report(log, run)
    return run.finish()


def _groups(model: nn.Module, parameters: Parameters | None) -> list[ParameterGroup] | None:
    """Return what trains as groups. Raises ConfigError for a parameter that is not the model's or is in two groups."""
    if parameters is None:
        return None
    groups = [one for one in parameters if isinstance(one, ParameterGroup)]
    plain = [one for one in parameters if isinstance(one, nn.Parameter)]
    if len(groups) + len(plain) != len(parameters) or (groups and plain):
        raise ConfigError("fit(parameters=...) takes a list of parameters of the model, or a list of ParameterGroup")
    groups = groups or [ParameterGroup(plain)]
    known, seen = {id(p) for p in model.parameters()}, set()
    for parameter in (p for group in groups for p in group.parameters):
        shape = tuple(parameter.shape)
        if id(parameter) not in known:
            raise ConfigError(
                f"fit(parameters=...) was given a parameter of shape {shape} that the model does not hold"
            )
        if id(parameter) in seen:
            raise ConfigError(f"fit(parameters=...) was given a parameter of shape {shape} twice")
        seen.add(id(parameter))
    if not seen:
        raise TaskError("fit(parameters=...) was given none; name what shall train")
    return groups


def _check(
    model: nn.Module,
    settings: FitSettings,
    hooks: Sequence[Hook],
    ranks: Group,
    device: torch.device,
    *,
    validated: bool,
) -> None:
    """Refuse what cannot go together before anything is done. Raises ConfigError."""
    for hook in hooks:
        name = type(hook).__name__
        if callable(getattr(hook, "penalty", None)):
            raise ConfigError(f"hook {name} has penalty(model); write loss(model, batch, loss), which returns the sum")
        if ranks.size > 1 and not hook.parallel:
            raise ConfigError(f"hook {name} needs all rows of a batch in one place; train with one process")
    if ranks.size > 1 and device.type != "cpu":
        raise ConfigError(f"several processes train over gloo, on cpu, not on {device}; start one, or choose cpu")
    if settings.schedule == "plateau" and settings.plateau_factor < 1 and not validated:
        raise ConfigError("the schedule plateau follows the validation score; give one, or choose constant or cosine")
    if settings.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"device {device} cannot compute in bfloat16; set precision: fp32")
    if settings.gradient_checkpointing and _recomputes(model) is None:
        raise ConfigError(
            f"gradient_checkpointing is for models that offer it, as those of transformers do; "
            f"{type(model).__name__} does not"
        )


def _total_steps(stream: Stream, settings: FitSettings) -> int | None:
    if settings.steps is not None:
        return settings.steps
    if settings.steps_per_epoch is not None:
        return settings.epochs * settings.steps_per_epoch
    return settings.epochs * stream.groups_in_a_pass() if falls(settings) else None


def _report(log: Log, run: Run) -> None:
    total = run.schedule.total
    done, whole = (run.epoch, run.settings.epochs) if total is None else (run.step, total)
    log.progress("training", whole if run.finished else done, whole)


@contextmanager
def _prepared(
    model: nn.Module, settings: FitSettings, hooks: Sequence[Hook], groups: Sequence[ParameterGroup] | None
) -> Iterator[None]:
    """Freeze what does not train, let tables give sparse gradients where asked; undo that and the hooks at the end."""
    undo: list[Callable[[], None]] = []
    try:
        if groups is not None:
            undo.append(_choose(model, groups))
        if settings.gradient_checkpointing:
            undo.append(_recompute(model))
        if settings.table_updates != "dense":
            undo += [let_sparse(table) for table in trainable_tables(model)]
        yield
    finally:
        for hook in hooks:
            hook.finish(model)
        for back in reversed(undo):
            back()


def _choose(model: nn.Module, groups: Sequence[ParameterGroup]) -> Callable[[], None]:
    """Let the chosen parameters alone require gradients; returns what undoes that."""
    chosen = {id(p) for group in groups for p in group.parameters}
    before = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in chosen)

    def undo() -> None:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)

    return undo


def _recompute(model: Any) -> Callable[[], None]:
    """Switch the recomputation of activations on; returns what undoes that."""
    name = _recomputes(model)
    if getattr(model, f"is_{name}", False):
        return lambda: None
    getattr(model, f"{name}_enable")()
    return lambda: getattr(model, f"{name}_disable")()


def _recomputes(model: nn.Module) -> str | None:
    """Return under which name a model offers it: transformers has renamed it."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    return next((name for name in names if hasattr(model, f"{name}_enable")), None)
