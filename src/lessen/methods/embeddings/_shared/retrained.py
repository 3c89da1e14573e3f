"""What methods share that put another kind of table into the model and train it anew."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Context, Forecast
from lessen.methods import retrain
from lessen.methods.calibration import count_ids
from lessen.methods.embeddings._shared.budget import (
    TOLERANCE,
    check_share,
    share_field,
    share_out,
    table_bytes,
    targets,
)
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import TABLES, Site, blocks, module_bytes, replace, require, state_bytes
from lessen.stored.tables.embedding import StoredEmbedding, TableShape
from lessen.task import Task

if TYPE_CHECKING:
    from lessen.train.hooks import Hook


NOTHING = 1e-9
"""A share that no table can reach: asking for it gives the smallest form that a method has."""


@dataclass(frozen=True)
class Wanted:
    """One table to replace: the module, its shape, the bytes it may take, and how often each id occurs."""

    table: Any
    shape: TableShape
    target: int | None
    """None when no share was asked for."""
    counts: Tensor | None
    """int64 [rows] over the train split, when the method asked for it."""


class RetrainedTables(ModuleMethod):
    """Replace each table by `replacement` and train the whole model by the task's loop.

    Training starts from a fresh build of the task; after another step changed the model, from the given weights.
    Tables that are frozen, tied, one column wide (first-order weights) or small are left as they are.
    """

    makes: ClassVar[tuple[type[StoredEmbedding], ...]]
    """Classes that `replacement` returns; their insides are not replaced again."""
    counts_ids: ClassVar[bool] = False
    """Whether `replacement` needs id counts of the train split."""
    share: float | None = share_field("the method's own size knobs")
    min_rows: int = Field(200, ge=1, le=10**9, description="fields with fewer rows keep rows of their own")

    def replacement(self, wanted: Wanted, context: Context) -> StoredEmbedding:
        """Return the untrained compact form of a table."""
        raise NotImplementedError(f"{type(self).__name__}.replacement")

    def training_hooks(self, context: Context) -> tuple[Hook, ...]:  # noqa: ARG002
        """Return what the training loop should call for this method."""
        return ()

    def finish(self, model: nn.Module, context: Context) -> nn.Module:  # noqa: ARG002
        """Turn the trained model into its stored form; by default it is that already."""
        return model

    def started(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Return the model to train: a fresh build where nothing is lost by it."""
        return retrain.fresh(model, task, context)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace the tables, train, and return the model.

        Raises:
            NothingMatchedError: no table is eligible or would get smaller.
            TaskError: the task cannot train.
            BudgetError: the share cannot be reached.
        """
        given = self.sites(model, context)
        allowed = targets(model, given, self.share) if self.share is not None else [None] * len(given)
        counted = count_ids(model, task, given) if self.counts_ids else [None] * len(given)
        known = {site.path: pair for site, pair in zip(given, zip(allowed, counted, strict=True), strict=True)}
        before = table_bytes(model)
        started = self.started(model, task, context)
        sites = [site for site in self.sites(started, context) if site.path in known]
        replaced: list[Site] = []
        saved = 0
        for site, made in zip(sites, self.forms(sites, known, before, context), strict=True):
            if self._pays(site, made, context):
                started = replace(started, site, made)
                replaced.append(site)
                saved += module_bytes(site.module) - self.final_bytes(made)
        require(replaced, self, model, context)
        if self.share is not None:
            context.findings["share"] = round(check_share(before - saved, before, self.share, self.card.name), 5)
        return self.trained(started, task, context)

    def forms(
        self, sites: list[Site], known: Mapping[str, tuple[int | None, Tensor | None]], before: int, context: Context
    ) -> list[StoredEmbedding]:
        """Return the replacement of each site; `known` holds its bytes and counts, `before` the bytes of all tables."""

        def make(number: int, target: int | None) -> StoredEmbedding:
            site = sites[number]
            wanted = Wanted(site.module, TableShape.of(site.module), target, known[site.path][1])
            return self.replacement(wanted, context)

        if self.share is None:
            return [make(number, None) for number in range(len(sites))]
        sizes = [module_bytes(site.module) for site in sites]
        aims = [int(known[site.path][0] or 1) for site in sites]
        slack = TOLERANCE * self.share * before
        return share_out(sizes, aims, slack, make, lambda number, made: min(sizes[number], self.final_bytes(made)))

    def trained(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Train the model with its new tables and return its stored form."""
        retrain.train(model, task, context, hooks=self.training_hooks(context))
        return self.finish(model, context)

    def forecast(self, model: nn.Module, task: Task, context: Context) -> Forecast | None:  # noqa: ARG002
        """Weigh the untrained tables, at the knobs as they are and at the smallest share.

        `context.known["id_counts"]` says how often each row is read; rows count as read evenly without it.
        """
        smallest = self._smallest(model, context)
        left = state_bytes(model) - table_bytes(model) + self._weighed(model, context)
        return Forecast(left, f"retrains: {self.card.summary}", smallest)

    def _smallest(self, model: nn.Module, context: Context) -> float:
        least = self.model_copy(update={"share": NOTHING})
        return least._weighed(model, context) / max(1, table_bytes(model))

    def _weighed(self, model: nn.Module, given: Context) -> int:
        """Return the bytes of all tables once training is done. Raises NothingMatchedError."""
        context, before = Context(), table_bytes(model)
        sites = self.sites(model, context)
        target = None if self.share is None else 1
        counts = given.known.get("id_counts", {})
        ones = {site.path: torch.ones(site.module.num_embeddings, dtype=torch.int64) for site in sites}
        known = {path: (target, counts.get(path, even)) for path, even in ones.items()}
        made = self.forms(sites, known, before, context)
        return before - sum(
            max(0, module_bytes(site.module) - self.final_bytes(form)) for site, form in zip(sites, made, strict=True)
        )

    def sites(self, model: nn.Module, context: Context) -> list[Site]:
        """Return the tables to act on. Raises NothingMatchedError."""
        return self.eligible(model, TABLES, context, self.reject, self.makes)

    def reject(self, table: Any) -> str | None:
        """Return the reason to leave a table alone, or None."""
        if table.embedding_dim == 1:
            return "has one column (first-order weights)"
        if not table.weight.requires_grad:
            return "is frozen: new rows could not be trained"
        if all(block.rows < self.min_rows for block in blocks(TableShape.of(table))):
            return f"every field has fewer than min_rows {self.min_rows} rows"
        return None

    def _pays(self, site: Site, made: StoredEmbedding, context: Context) -> bool:
        before, after = module_bytes(site.module), self.final_bytes(made)
        if after >= before:
            context.findings.setdefault("skipped", {})[site.path] = f"would take {after} bytes instead of {before}"
            return False
        context.findings.setdefault("tables", {})[site.path] = {"bytes": after, **self.finding(made)}
        return True

    def final_bytes(self, made: StoredEmbedding) -> int:
        """Return the bytes that a replacement takes once training is done."""
        return module_bytes(made)

    def finding(self, made: StoredEmbedding) -> dict[str, Any]:
        """Return what to record about a replacement, JSON values."""
        known = made.shape.config()
        return {key: value for key, value in made.config().items() if key not in known}


def spread(table: nn.Module) -> float:
    """Return the standard deviation of a table's values, from which its replacement starts."""
    weight: Any = table.weight
    value = float(weight.detach().float().std(unbiased=False))
    return value if math.isfinite(value) and value > 0 else 0.01


def small_and_large(shape: TableShape, min_rows: int) -> tuple[list[int], int]:
    """Return the numbers of the blocks that keep rows of their own, and the rows of all others together."""
    parts = blocks(shape)
    small = [number for number, block in enumerate(parts) if block.name == "" or block.rows < min_rows]
    return small, sum(block.rows for number, block in enumerate(parts) if number not in small)


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is at most `most`."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)
