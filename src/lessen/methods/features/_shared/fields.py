"""Take fields out of a click model: a fresh, narrower network on the kept columns, trained by the task's loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from lessen.data.columns import IdField, Layout
from lessen.errors import BudgetError, DataError, TaskError
from lessen.method import Context
from lessen.methods import retrain
from lessen.methods.sites import Site, replace
from lessen.stored.fields import Segment
from lessen.stored.tables.selected_fields import SelectedFields
from lessen.task import Task
from lessen.tasks.ctr.base import ClickTask
from lessen.tasks.ctr.layers import FieldVectors
from lessen.tasks.ctr.models import MODELS

OWN_MODELS = (
    "it rebuilds a narrower model, and only the click models of this package can be rebuilt (`--task ctr-logs:...`); "
    "for a model of your own, rank its columns with `lessen rank`, leave some out of the data and train it again"
)


def click_task(task: Task, model: nn.Module, method: str) -> ClickTask:
    """Return `task` if fields can be taken out of its model.

    Raises:
        TaskError: not a task on columns, or an earlier step changed the model, which a rebuild would undo.
    """
    if not all(hasattr(task, name) for name in ("layout", "splits", "model", "arguments")):
        raise TaskError(f"{method} takes columns out of a click model; task {task.name!r} has no columns")
    if retrain._altered(model):
        raise TaskError(f"{method} builds a narrower model, which would undo the steps before it; put it first")
    return cast(ClickTask, task)


def names_of(layout: Layout) -> list[str]:
    """Return all fields, categorical and pooled first, then numeric."""
    return [field.name for field in layout.fields] + list(layout.numeric)


def narrowed(layout: Layout, keep: Sequence[str]) -> tuple[Layout, list[int], list[int]]:
    """Return the layout of the kept fields, the old columns it reads, and the offset of ids in each of them.

    Raises:
        BudgetError: no field would be left.
    """
    fields = [field for field in sorted(layout.fields, key=lambda item: item.start) if field.name in keep]
    numeric = tuple(name for name in layout.numeric if name in keep)
    if not fields:
        raise BudgetError("no id field would be left; lower the threshold or keep more columns")
    used = [segment for segment in layout.segments if segment.name in {field.segment for field in fields}]
    segments, offset, start = [], {}, 1
    for segment in sorted(used, key=lambda item: item.start):
        segments.append(Segment(segment.name, start, segment.rows))
        offset[segment.name] = segment.start - start
        start += segment.rows
    made, pick, shift, column = [], list[int](), list[int](), 0
    for field in fields:
        made.append(IdField(field.name, field.kind, column, field.width, field.segment))
        pick += range(field.start, field.start + field.width)
        shift += [offset[field.segment]] * field.width
        column += field.width
    return Layout(tuple(made), tuple(segments), numeric), pick, shift


def narrow_model(task: ClickTask, keep: Sequence[str], context: Context) -> nn.Module:
    """Return an untrained model of the task's kind that reads only `keep` but takes the task's full inputs.

    Raises:
        BudgetError: no id field would be left.
        TaskError: the model reads ids elsewhere than in its field vectors (DIN's attention does).
    """
    layout, pick, shift = narrowed(task.layout, keep)
    numbers = [task.layout.numeric.index(name) for name in layout.numeric]
    full = task.inputs(task.example_batch())
    small = {"ids": (full["ids"][:, pick] - torch.tensor(shift)).clamp(min=0)}
    if numbers:
        small["numeric"] = full["numeric"][:, numbers]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(context.seed)
        model = MODELS[task.model](layout, **task.arguments).eval()
        wanted = model(**small)
        for path, vectors in list(model.named_modules()):
            if isinstance(vectors, FieldVectors):
                selected = _selected(vectors, task.layout, layout, pick, shift, numbers)
                model = replace(model, Site((path,), vectors), selected)
        try:
            same = torch.equal(model(**full), wanted)
        except (IndexError, RuntimeError, DataError):
            same = False
    if not same:
        raise TaskError(f"fields cannot be taken out of {task.model!r}: it reads ids outside its field vectors")
    return model


def _selected(
    vectors: FieldVectors, old: Layout, new: Layout, pick: list[int], shift: list[int], numbers: list[int]
) -> SelectedFields:
    sections = list(zip(vectors.widths, vectors.pooled, strict=True))
    numeric = 0 if vectors.values is None else len(vectors.values)
    made = SelectedFields(old.width, sections, new.segments, vectors.table.embedding_dim, numeric)
    made.pick.copy_(torch.tensor(pick))
    made.shift.copy_(torch.tensor(shift))
    made.numbers.copy_(torch.tensor(numbers[:numeric], dtype=torch.int64))
    made.table.load_state_dict(vectors.table.state_dict())
    if made.values is not None and vectors.values is not None:
        made.values.copy_(vectors.values)
    return made


def retrained(task: ClickTask, keep: Sequence[str], context: Context) -> nn.Module:
    """Return the narrow model after training."""
    model = narrow_model(task, keep, context)
    retrain.train(model, task, context)
    return model
