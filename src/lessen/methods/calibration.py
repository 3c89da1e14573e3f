"""What methods learn from data without labels: id frequencies, moments of outputs, batch-norm statistics."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import NonFiniteError, TaskError
from lessen.methods.sites import Site
from lessen.task import Task


@contextmanager
def watching(hooks: list[tuple[nn.Module, Callable[..., None]]], outputs: bool = False) -> Iterator[None]:
    """Attach forward (pre-)hooks and remove them whatever happens."""
    handles: list[Any] = []
    try:
        for module, hook in hooks:
            attach = module.register_forward_hook if outputs else module.register_forward_pre_hook
            handles.append(attach(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_through(model: nn.Module, task: Task, batches: int | None = None) -> int:
    """Run the model in eval mode over the train split (the first `batches` of it) and return the batches seen.

    Raises:
        TaskError: the train split is empty.
        NonFiniteError: a hook found NaN or infinity; names the batch.
    """
    was_training = model.training
    model.eval()
    seen = 0
    for batch in itertools.islice(task.batches("train"), batches):
        seen += 1
        try:
            task.forward(model, batch)
        except NonFiniteError as error:
            raise NonFiniteError(f"train batch {seen} of task {task.name!r}: {error}") from error
    model.train(was_training)
    if not seen:
        raise TaskError(f"task {task.name!r} has an empty train split: nothing to calibrate on")
    return seen


def count_ids(model: nn.Module, task: Task, sites: list[Site]) -> list[Tensor]:
    """Return how often the train split looks up each row of each table, int64 [rows], one tensor a site."""
    counts = [torch.zeros(site.module.num_embeddings, dtype=torch.int64) for site in sites]

    def counter(total: Tensor) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            ids = arguments[0] if arguments else keywords["input"]
            total.add_(torch.bincount(ids.reshape(-1).cpu(), minlength=len(total)))

        return hook

    with watching([(site.module, counter(total)) for site, total in zip(sites, counts, strict=True)]):
        run_through(model, task)
    return counts


class Moments:
    """Mean and covariance of rows that arrive in batches, float64, merged so that large means cost no digits."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take rows [n, width] in. Raises NonFiniteError when they hold NaN or infinity."""
        rows = rows.detach().double().cpu()
        if not bool(torch.isfinite(rows).all()):
            raise NonFiniteError("calibration data gave NaN or infinity; clean the train split first")
        count = len(rows)
        if count == 0:
            return
        mean = rows.mean(dim=0)
        centred, shift, total = rows - mean, mean - self.mean, self.count + count
        self.scatter += centred.t() @ centred + torch.outer(shift, shift) * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Covariance [width, width], divided by the count."""
        return self.scatter / max(self.count, 1)


def output_moments(model: nn.Module, task: Task, sites: list[Site], batches: int | None) -> list[Moments]:
    """Return the moments of each layer's output over the train split; of a convolution over its positions."""
    moments = [Moments(len(site.module.weight)) for site in sites]

    def collector(into: Moments) -> Callable[..., None]:
        def hook(module: nn.Module, _arguments: Any, _keywords: Any, output: Tensor) -> None:
            rows = output if isinstance(module, nn.Linear) else output.movedim(1, -1)
            into.add(rows.reshape(-1, rows.shape[-1]))

        return hook

    pairs = [(site.module, collector(moment)) for site, moment in zip(sites, moments, strict=True)]
    with watching(pairs, outputs=True):
        run_through(model, task, batches)
    return moments


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, task: Task, batches: int | None) -> int:
    """Recompute the running statistics of every batch norm on the train split; return how many were recomputed."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    momenta = [module.momentum for module in norms]
    model.eval()
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # cumulative average
        module.train()
    for batch in itertools.islice(task.batches("train"), batches):
        task.forward(model, batch)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
        module.eval()
    return len(norms)


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return (variances [d] in falling order, never negative; axes [d, d] in columns), float64."""
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0).clamp_(min=0.0), vectors.flip(1)


def rank_for(variances: Tensor, energy: float) -> int:
    """Return the smallest rank that keeps the share `energy` of the sum of `variances`."""
    total = float(variances.sum())
    if total == 0.0:
        return 1
    kept = variances.cumsum(0) / total
    return min(int((kept < energy).sum()) + 1, len(variances))
