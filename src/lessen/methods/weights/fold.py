"""Savings that change no output: what a trained model carries for nothing is folded into its neighbours."""

from __future__ import annotations

import itertools
from typing import Any

from pydantic import Field
from torch import nn

from lessen.errors import TaskError
from lessen.folding.flow import Call, first_rows
from lessen.folding.norms import LAYERS, NORMS
from lessen.folding.run import Folded, fold
from lessen.method import Card, Context
from lessen.methods.calibration import watching
from lessen.methods.modules import ModuleMethod
from lessen.task import Task

LISTED = 40


class LosslessFold(ModuleMethod):
    """Fold batch norms, branches, linear chains and steps, spare units, constant parts, serving tables and doubles.

    Source: batch norms into layers, Jacob et al. 2018 (arXiv 1712.05877, section 3.2); branches into one convolution,
    RepVGG (arXiv 2101.03697); serving tables of item encoders, CLHE (arXiv 2310.18770); prompts and the tower that
    reads them, PRE; a dictionary step as one matrix, CRATE (arXiv 2306.01129); the others are identities.

    What reads what is seen in one pass in eval mode, by the calls of torch functions, not guessed from the order of
    the modules. Each fold is made on a float64 copy where the model can run in float64, and is kept only if all answers
    stay: to the inputs of the task, to parts of them, to drawn ones and to other lengths. Parts that are called more
    than once, shared, hooked or parametrised stay as they are. Afterwards the model serves; batch norms that are gone
    cannot be trained any more.
    """

    card = Card(
        name="fold",
        family="weights",
        summary="Fold what changes no output: norms, branches, linear steps, spare units, constants, serving tables.",
        acts_on=(*NORMS, *LAYERS),
        source="arXiv 1712.05877 (section 3.2); RepVGG, arXiv 2101.03697; identities",
        claims=frozenset({"bytes"}),
    )
    batches: int = Field(2, ge=1, le=100, description="validation batches that the answers are compared on")
    rows: int = Field(8, ge=2, le=4096, description="examples of each that are used")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Fold until nothing is left. Raises NothingMatchedError; TaskError for a model that cannot be compared."""
        if next(itertools.chain(model.parameters(), model.buffers()), None) is None:
            raise self.nothing_matched(model, "it holds no tensor")
        self.scope.check(path for path, _ in model.named_modules() if path)
        calls = calls_of(model, task, self.batches, self.rows)
        found = fold(model, calls, context.generator, lambda path: self.scope.reason([path]))
        context.findings.update(report(found))
        if not found.folds:
            kept = "; ".join(f"{path}: {reason}" for path, reason in list(found.kept.items())[:4])
            raise self.nothing_matched(model, kept or "no norm, branch, chain, constant, serving table or spare unit")
        return found.model.train(model.training)


def calls_of(model: nn.Module, task: Task, batches: int, rows: int) -> list[Call]:
    """Return what the task calls the model with, the first `rows` examples of each batch.

    Raises:
        TaskError: the validation split is empty, or the task never calls the model.
    """
    calls: list[Call] = []

    def note(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        calls.append((arguments, keywords))

    was = model.training
    model.eval()
    try:
        with watching([(model, note)]):
            for batch in itertools.islice(task.batches("validation"), batches):
                task.forward(model, batch)
    finally:
        model.train(was)
    if not calls:
        raise TaskError(f"task {task.name!r} called the model on no validation batch: nothing to prove a fold on")
    return [first_rows(call, rows) for call in calls[:batches]]


def report(found: Folded) -> dict[str, Any]:
    """Return what was folded and what was not, and how far the answers moved: JSON values."""
    return {
        "folded": [{"kind": each.kind, "path": each.path, "into": each.into} for each in found.folds],
        "error": found.error,
        "bound": found.bound,
        "kept": dict(list(found.kept.items())[:LISTED]),
        "unused": list(found.unused[:LISTED]),
    }
