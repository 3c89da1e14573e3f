"""Methods in two trainings: the first learns what each table keeps, the second trains what was kept.

start --copy--> search forms --train--> decide --> kept forms in the copy --train--> stored forms
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from lessen.method import Context, Forecast
from lessen.methods import retrain
from lessen.methods.embeddings._shared.budget import check_share, table_bytes
from lessen.methods.embeddings._shared.trained_form import TrainedQuantizer, TrainingForm
from lessen.methods.sites import replace_everywhere
from lessen.stored.tables.embedding import StoredEmbedding
from lessen.task import Task
from lessen.train.hooks import Hook


class SearchForm(TrainingForm):
    """A table while it is searched. `stored_bytes` says what the search aims at."""

    kind = "search-form"

    def settle(self) -> None:
        """Keep what was learned; called with the weights of the last step, before the best ones are put back."""

    def kept(self, start: SearchForm) -> StoredEmbedding:
        """Return the table to train next, from what this form learned and the rows that `start` holds."""
        raise NotImplementedError(f"{type(self).__name__}.kept")

    def stored(self) -> StoredEmbedding:
        """Refuse: a search ends in `kept`."""
        raise TypeError(f"{type(self).__name__} is for searching; it has no stored form")

    def stored_bytes(self) -> int:
        """Return the bytes that the stored form will take."""
        raise NotImplementedError(f"{type(self).__name__}.stored_bytes")

    def outcome(self) -> dict[str, Any]:
        """Return what the search found, JSON values."""
        return {}


class Settling(Hook):
    """Lets every search form settle when the search ends."""

    def finish(self, model: nn.Module) -> None:
        """Settle them."""
        for form in search_forms(model).values():
            form.settle()


def search_forms(model: nn.Module) -> dict[str, SearchForm]:
    """Return the search forms of a model by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, SearchForm)}


def with_settings(task: Task, **changes: Any) -> Task:
    """Return the task with other training settings; the task itself is left as it is."""
    return task.view(settings=dataclasses.replace(task.settings, **changes))


class SearchedTables(TrainedQuantizer):
    """Search, decide, and train again from the weights that the search started from.

    Subclasses implement `replacement`, which returns a `SearchForm`, and may override `search_hooks` and `decide`.
    """

    form_by_training: ClassVar[bool] = True
    finds_size: ClassVar[bool] = False
    """Whether the search decides the size where no share is asked for, so that nothing is known of it before."""
    keeps_network: ClassVar[bool] = False
    """Whether the second training starts from the searched network; tables start as before the search either way."""
    search_epochs: int = Field(4, ge=1, le=1000, description="epochs of the training that searches; none stops early")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Search, train, and return the model.

        Raises:
            NothingMatchedError: no table is eligible or would get smaller.
            TaskError: the task cannot train.
            BudgetError: the share cannot be reached.
        """
        before = table_bytes(model)
        made = super().apply(model, task, context)
        if self.share is not None:
            context.findings["share"] = round(check_share(table_bytes(made), before, self.share, self.card.name), 5)
        return made

    def forecast(self, model: nn.Module, task: Task, context: Context) -> Forecast | None:
        """Return what the tables would take, or only how small they can get where the search decides."""
        found = super().forecast(model, task, context)
        if not self.finds_size or self.share is not None or found is None:
            return found
        down = "" if found.smallest is None else f", down to {100 * found.smallest:.2g} % of the tables"
        return Forecast(None, f"its search finds the size; set share{down}", found.smallest)

    def trained(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Search with the forms in place, put the kept forms into the model as it was before, and train it."""
        before = copy.deepcopy(model)
        self.search(model, task, context)
        found, first = search_forms(model), search_forms(before)
        self.decide(model, list(found.values()), task, context)
        again = model if self.keeps_network else before
        for path, form in found.items():
            context.findings["tables"][path or "the model itself"].update(form.outcome())
            old = form if self.keeps_network else first[path]
            again = replace_everywhere(again, old, form.kept(first[path]))
        retrain.train(again, task, context, hooks=self.training_hooks(context))
        return self.finish(again, context)

    def search(self, model: nn.Module, task: Task, context: Context) -> None:
        """Train the search forms for `search_epochs` at a constant learning rate."""
        epochs = self.search_epochs
        settings = with_settings(self.search_task(task, context), epochs=epochs, patience=epochs, plateau_factor=1.0)
        hooks = (*self.training_hooks(context), *self.search_hooks(task, context), Settling())
        retrain.train(model, settings, context, hooks=hooks)
        context.findings["search"] = context.findings.pop("trained")

    def search_task(self, task: Task, context: Context) -> Task:  # noqa: ARG002
        """Return the task to search on."""
        return task

    def search_hooks(self, task: Task, context: Context) -> Sequence[Hook]:  # noqa: ARG002
        """Return what the loop should call while it searches."""
        return ()

    def decide(self, model: nn.Module, forms: Sequence[SearchForm], task: Task, context: Context) -> None:
        """Choose jointly what the tables keep, where they do not settle each for itself."""
