"""What a task can give to methods, by name: said by structure, so that a user's task needs no declaration.

labels, gradients, training, calibration    what every Task gives unless its `provides` says less
columns, text, images, pairs, teacher, bank, paths    what a task gives by having the member below
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class HasColumns(Protocol):
    """Examples are rows of named fields: click logs and tables."""

    layout: Any
    """Which columns of a batch belong to which field (`data.columns.Layout`)."""
    splits: Any
    """Rows of each split (`data.columns.Columns`)."""


@runtime_checkable
class HasText(Protocol):
    """Examples come from texts."""

    def texts(self, split: str) -> Iterable[str]:
        """Return the documents of a split."""


@runtime_checkable
class HasImages(Protocol):
    """Examples come from pictures."""

    def images(self, split: str) -> Iterable[Any]:
        """Return the pictures of a split, uint8 [height, width, 3] each."""


@runtime_checkable
class HasPairs(Protocol):
    """Examples are two sides that belong together: query and passage, picture and caption."""

    def pairs(self, split: str) -> Iterable[tuple[Any, Any]]:
        """Return the pairs of a split."""


@runtime_checkable
class HasBank(Protocol):
    """Queries look for targets; `target` of a batch names rows of the bank."""

    def bank(self, model: nn.Module) -> Any:
        """Return the vectors of all training targets, float [targets, d], by the model's own tower of targets."""


@runtime_checkable
class HasPaths(Protocol):
    """Documents stand in a tree of categories."""

    def paths(self) -> Iterable[Iterable[int]]:
        """Return the tokens that lead to each document, the broadest category first, the last ending the path."""


@runtime_checkable
class HasTeacher(Protocol):
    """A model to learn from comes with the task."""

    def teacher(self, seed: int) -> nn.Module:
        """Return the teacher in eval mode."""


@runtime_checkable
class CanTrain(Protocol):
    """A model can be trained: batches of a train split and a loss on them."""

    def build(self) -> nn.Module:
        """Return the untrained model."""

    def loss(self, model: nn.Module, batch: Any) -> Any:
        """Return the scalar training loss of a batch."""


STRUCTURAL: Mapping[str, type[Any]] = {
    "columns": HasColumns,
    "text": HasText,
    "images": HasImages,
    "pairs": HasPairs,
    "teacher": HasTeacher,
    "bank": HasBank,
    "paths": HasPaths,
}
TRAINING = frozenset({"labels", "gradients", "training", "calibration"})
"""What a task that can train gives, unless it has a `provides` of its own."""
NAMES = frozenset(STRUCTURAL) | TRAINING


def capabilities(task: Any) -> frozenset[str]:
    """Return the names of what `task` gives.

    A task may set `provides` to say which of `TRAINING` it gives, and `withheld` to keep something back; the rest is
    seen by its members.
    """
    declared = getattr(task, "provides", None)
    if declared is None:
        declared = TRAINING if isinstance(task, CanTrain) else frozenset()
    seen = {name for name, protocol in STRUCTURAL.items() if isinstance(task, protocol)}
    return (frozenset(declared) | seen) - getattr(task, "withheld", frozenset())
