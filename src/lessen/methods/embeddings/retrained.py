"""What methods share that put another kind of table into the model and train it anew."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from lessen.method import Context, Method
from lessen.methods import retrain
from lessen.methods.sites import TABLES, Site, blocks, find, module_bytes, replace, require
from lessen.stored.embedding import StoredEmbedding, TableShape
from lessen.task import Task


class RetrainedTables(Method):
    """Replace each table by `replacement` and train the whole model by the task's loop.

    Training starts from a fresh build of the task; after another step changed the model, from the given weights.
    Tables that are frozen, tied, one column wide (first-order weights) or small are left as they are.
    """

    makes: ClassVar[tuple[type[StoredEmbedding], ...]]
    """Classes that `replacement` returns; their insides are not replaced again."""
    min_rows: int = Field(200, ge=1, le=10**9, description="fields with fewer rows keep rows of their own")

    def replacement(self, table: nn.Module, shape: TableShape, context: Context) -> StoredEmbedding:
        """Return the untrained compact form of `table`."""
        raise NotImplementedError(f"{type(self).__name__}.replacement")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Replace the tables, train, and return the model.

        Raises:
            NothingMatchedError: no table is eligible or would get smaller.
            TaskError: the task cannot train.
        """
        eligible = {site.path for site in self.sites(model, context)}
        started = retrain.fresh(model, task, context)
        replaced: list[Site] = []
        for site in self.sites(started, context):
            if site.path not in eligible:
                continue
            made = self.replacement(site.module, TableShape.of(site.module), context)
            before, after = module_bytes(site.module), module_bytes(made)
            if after >= before:
                context.findings.setdefault("skipped", {})[site.path] = f"would take {after} bytes instead of {before}"
                continue
            context.findings.setdefault("tables", {})[site.path] = {"bytes": after, **self.finding(made)}
            started = replace(started, site, made)
            replaced.append(site)
        require(replaced, self, model, context)
        retrain.train(started, task, context)
        return started

    def sites(self, model: nn.Module, context: Context) -> list[Site]:
        """Return the tables to act on. Raises NothingMatchedError."""
        return require(find(model, TABLES, context, self.reject, self.makes), self, model, context)

    def reject(self, table: Any) -> str | None:
        """Return the reason to leave a table alone, or None."""
        if table.embedding_dim == 1:
            return "has one column (first-order weights)"
        if not table.weight.requires_grad:
            return "is frozen: new rows could not be trained"
        if all(block.rows < self.min_rows for block in blocks(TableShape.of(table))):
            return f"every field has fewer than min_rows {self.min_rows} rows"
        return None

    def finding(self, made: StoredEmbedding) -> dict[str, Any]:
        """Return what to record about a replacement, JSON values."""
        config = made.config()
        return {key: config[key] for key in config if key not in TableShape.of(made).config()}


def spread(table: nn.Module) -> float:
    """Return the standard deviation of a table's values, from which its replacement starts."""
    weight: Any = table.weight
    value = float(weight.detach().float().std(unbiased=False))
    return value if math.isfinite(value) and value > 0 else 0.01
