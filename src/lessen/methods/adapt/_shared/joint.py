"""One backbone and a low-rank difference for each of k tasks, all trained in the same run.

batch of task t ─ W + U_t V_t in every chosen layer ─ loss of t     gradients reach W, U_t and V_t, and no other task's

    train_jointly(model, sites, tasks, ...) -> Joint          joint.model(t): the backbone with the difference of t
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from lessen.artifact import folder as artifact
from lessen.artifact.delta import base_of
from lessen.errors import ConfigError
from lessen.method import Context
from lessen.methods import retrain
from lessen.methods.sites import Site, replace
from lessen.stored.linears.low_rank_delta import LowRankDelta
from lessen.task import Split, Task


class TaskDeltas(nn.Module):
    """A linear layer with one correction for each task, of which one is chosen at a time; zero at first.

    Args:
        layer: the backbone's own, which trains.
        rank: of each U_t [out, rank] and V_t [rank, in].
    """

    def __init__(self, layer: nn.Linear, tasks: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layer, self.chosen = layer, 0
        made = [LowRankDelta.around(layer, rank, 1.0, generator) for _ in range(tasks)]
        self.up = nn.ParameterList(one.up for one in made)
        self.down = nn.ParameterList(one.down for one in made)
        layer.requires_grad_(True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [*, in] to [*, out] for the task that is chosen."""
        low = functional.linear(inputs, self.down[self.chosen])
        return self.layer(inputs) + functional.linear(low, self.up[self.chosen])  # type: ignore[no-any-return]

    @torch.no_grad()
    def of(self, task: int) -> LowRankDelta:
        """Return a copy of the layer with the correction of one task."""
        up = self.up[task]
        made = LowRankDelta.around(copy.deepcopy(self.layer), up.shape[1], 1.0, torch.Generator())
        made.layer.requires_grad_(True)
        made.up.copy_(up)
        made.down.copy_(self.down[task])
        return made


@dataclasses.dataclass(frozen=True)
class Joint:
    """What was trained: a backbone whose chosen layers hold every task's difference."""

    trained: nn.Module
    sites: tuple[Site, ...]

    def model(self, task: int) -> nn.Module:
        """Return a model of its own for one task, by its number."""
        made = copy.deepcopy(self.trained)
        for site in self.sites:
            made = replace(made, Site(site.paths, made.get_submodule(site.paths[0])), site.module.of(task))
        return made.eval()

    def backbone(self) -> nn.Module:
        """Return the shared model without any difference."""
        made = copy.deepcopy(self.trained)
        for site in self.sites:
            plain = copy.deepcopy(site.module.layer)
            made = replace(made, Site(site.paths, made.get_submodule(site.paths[0])), plain)
        return made.eval()

    def save(self, folder: Path, names: Sequence[str]) -> dict[str, int]:
        """Write `folder/backbone`, and for each task `folder/NAME` with its factors beside it.

        A task's model comes back by `artifact.load(folder / NAME, model=artifact.load(folder / "backbone", ...))`.

        Returns:
            Bytes of each artifact by name.

        Raises:
            OutputError: a folder of these names exists and is not empty.
        """
        shared = self.backbone()
        reference = base_of(shared)
        found = {"backbone": artifact.save(folder / "backbone", shared, shared)}
        for number, name in enumerate(names):
            found[name] = artifact.save(folder / name, self.model(number), shared, reference=reference)
        return found


def train_jointly(
    model: nn.Module, sites: Sequence[Site], tasks: Sequence[Task], rank: int, context: Context, epochs: int | None
) -> Joint:
    """Train a backbone and the differences of all tasks by the settings of the first task.

    An epoch takes every batch of every task once, in mixed order. What stops and keeps is the mean of the tasks' first
    metrics on validation.

    Raises:
        ConfigError: the model holds batch norms, whose statistics would be of all tasks at once.
    """
    norms = [path for path, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if norms:
        raise ConfigError(
            f"{norms[0]} is a batch norm: its statistics would be of all tasks at once; take a model with layer or "
            "group norms, or one difference at a time (checkpoint)"
        )
    made: list[Site] = []
    for site in sites:
        deltas = TaskDeltas(site.module, len(tasks), min(rank, *site.module.weight.shape), context.generator)
        made.append(Site(site.paths, deltas))
        model = replace(model, site, deltas)
    retrain.train(model.train(), mixed(tasks, made), context, epochs=epochs)
    return Joint(model.eval(), tuple(made))


def mixed(tasks: Sequence[Task], sites: Sequence[Site]) -> Task:
    """Return the first task with the batches of all, each a pair of its task's number and the batch."""

    def choose(number: int) -> None:
        for site in sites:
            site.module.chosen = number

    def batches(split: Split, seed: int = 0) -> Iterator[Any]:
        each = [iter(task.batches(split, seed)) for task in tasks]
        generator, left = torch.Generator().manual_seed(seed), list(range(len(tasks)))
        while left:
            number = left[int(torch.randint(len(left), (1,), generator=generator))]
            try:
                yield number, next(each[number])
            except StopIteration:
                left.remove(number)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        choose(batch[0])
        found: Tensor = tasks[batch[0]].loss(model, batch[1])
        return found

    def score(model: nn.Module, split: Split) -> float:
        found = []
        for number, task in enumerate(tasks):
            choose(number)
            found.append(task.score(model, split))
        return sum(found) / len(found)

    return tasks[0].view(batches=batches, loss=loss, score=score)
