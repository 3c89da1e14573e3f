"""How much a trained model relies on a field: held-out loss when the field's values are shuffled among rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lessen.data.columns import Layout
from lessen.metrics import LOGLOSS, Floats, Outcomes
from lessen.selection.ranking.pairs import Pairs
from lessen.selection.ranking.tally import NO_CLASS
from lessen.tasks.ctr.base import ClickTask

_ROWS = 16_384


@dataclass(frozen=True)
class Effect:
    """Rise of the log loss in nats a row when fields are shuffled together, and its standard error over rows."""

    effect: float
    error: float

    @property
    def z(self) -> float:
        """The effect in standard errors; 0 for a field that the model ignores."""
        return self.effect / self.error if self.error > 0 else 0.0


@torch.no_grad()
def field_effects(
    model: nn.Module, task: ClickTask, groups: Sequence[Sequence[str]], repeats: int, generator: torch.Generator
) -> list[Effect]:
    """Shuffle each group of fields, all by one order, inside validation batches; return one effect a group.

    Shuffling keeps each column's histogram but makes rows that cannot occur (marginal, not conditional permutation).
    """
    differences: list[list[NDArray[np.float64]]] = [[] for _ in groups]
    for inputs, label in task.batches("validation"):
        plain = _losses(model, task, inputs, label)
        for number, group in enumerate(groups):
            rise = np.zeros(len(label))
            for _ in range(repeats):
                order = torch.randperm(len(label), generator=generator)
                moved = shuffled(inputs, task.layout, group, order)
                rise += _losses(model, task, moved, label) - plain
            differences[number].append(rise / repeats)
    joined = [np.concatenate(parts) for parts in differences]
    return [Effect(float(rise.mean()), float(rise.std() / np.sqrt(len(rise)))) for rise in joined]


def shuffled(inputs: dict[str, Tensor], layout: Layout, group: Sequence[str], order: Tensor) -> dict[str, Tensor]:
    """Return `inputs` with the columns of `group` in another order of rows."""
    result = dict(inputs)
    result["ids"] = inputs["ids"].clone()
    for field in layout.fields:
        if field.name in group:
            columns = slice(field.start, field.start + field.width)
            result["ids"][:, columns] = inputs["ids"][order, columns]
    if layout.numeric:
        result["numeric"] = inputs["numeric"].clone()
        for number, name in enumerate(layout.numeric):
            if name in group:
                result["numeric"][:, number] = inputs["numeric"][order, number]
    return result


def _losses(model: nn.Module, task: ClickTask, inputs: dict[str, Tensor], label: Tensor) -> Floats:
    scores = np.asarray(task.predict(model, (inputs, label)).numpy())
    return LOGLOSS.each(Outcomes({"score": scores, "target": label.numpy()}))


def redundant_groups(task: ClickTask, share: float) -> list[list[str]]:
    """Return all fields, those that determine each other by at least `share` in one group.

    Shuffled one at a time, redundant fields would each look useless. Pooled and numeric fields stand alone.
    """
    single = [field for field in task.layout.fields if field.kind == "categorical"]
    ids = task.splits["train"].ids[:_ROWS]
    frame = pl.DataFrame({field.name: ids[:, field.start].numpy() for field in single})
    # rows may come in order of time; the shift inside the pair scores needs an order without meaning
    frame = frame.sample(fraction=1.0, shuffle=True, seed=0)
    pairs = Pairs(frame, np.full(len(frame), NO_CLASS, dtype=np.uint8))
    group = {field.name: {field.name} for field in task.layout.fields} | {name: {name} for name in task.layout.numeric}
    for pair in pairs.redundancy(frame.columns):
        if pair.share >= share:
            merged = group[pair.first] | group[pair.second]
            for name in merged:
                group[name] = merged
    seen: dict[frozenset[str], None] = {frozenset(members): None for members in group.values()}
    return [sorted(members) for members in seen]
