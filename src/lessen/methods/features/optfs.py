"""OptFS: learn for each feature value whether to keep its row, then train what is kept from a rewound start."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lessen.method import Card, Context
from lessen.methods import retrain
from lessen.methods.features._shared.gates import GateOptimizer, RowGatedTable
from lessen.methods.modules import ModuleMethod
from lessen.methods.sites import TABLES, Site, blocks, module_bytes, replace, require, too_small
from lessen.stored.tables.pruned_embedding import PrunedEmbedding
from lessen.task import Task
from lessen.train.hooks import Hook

if TYPE_CHECKING:
    from lessen.train.settings import FitSettings


class OptFS(ModuleMethod):
    """Two trainings: a search with soft gates that harden, and a retraining of the kept rows from an early checkpoint.

    Published penalties (1e-9 to 1e-8) live below the eps of Adam and prune nothing on small data, so the size is asked
    for instead: `keep` is the share of rows, and the penalty is steered so that this share of the gates is open at the
    end; what is missing or too many is settled by the size of the gates. A `penalty` that is set is used as a constant
    and rows with a positive gate stay, as published. The gates' learning rate is chosen so that a value which training
    never sees closes after `cross_after` of the search; the paper shares the weights' learning rate, whose reach
    depends on the size of the data. `by: frequency` is the control that every selection of rows has to beat: the most
    frequent rows, without a search.

    Rows that go read zero, not the out-of-vocabulary row. The map of ids costs 4 bytes an id, counted;
    `vocabulary.rewrite` moves it into preprocessing, and serving then has a plain small table.

    Source: Lyu et al., WWW 2023, arXiv 2301.10909. Differs in the steered penalty and the gates' learning rate.
    """

    card = Card(
        name="optfs",
        family="features",
        summary="Learn which feature values earn their embedding row; drop the other rows and retrain.",
        acts_on=TABLES,
        source="OptFS, WWW 2023, arXiv 2301.10909",
        needs=frozenset({"labels", "gradients", "training"}),
        claims=frozenset({"bytes"}),
    )
    version = 2
    keep: float = Field(0.3, gt=0, lt=1, description="share of rows to keep, over all tables together")
    penalty: float | None = Field(None, gt=0, le=1, description="constant penalty per open gate, in place of keep")
    by: Literal["gates", "frequency"] = Field("gates", description="what ranks the rows; frequency is the control")
    search_epochs: int = Field(6, ge=2, le=1000, description="epochs of the search")
    rewind_epoch: int = Field(1, ge=0, le=999, description="epochs of the search whose weights retraining starts from")
    temperature: float = Field(100.0, gt=1, le=1e6, description="final steepness of the gates")
    initial: float = Field(0.5, gt=0, le=10, description="initial gate logit")
    cross_after: float = Field(0.2, gt=0, le=1, description="share of the search after which an unseen value closes")
    min_rows: int = Field(200, ge=2, le=10**9, description="tables with fewer rows are left alone")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        """Search, cut, retrain, store. Raises NothingMatchedError when no table is eligible or would get smaller."""
        sites = self._sites(model, context)
        before = [module_bytes(site.module) for site in sites]
        model = retrain.fresh(model, task, context)
        tables = []
        for site in self._sites(model, context):
            gated = RowGatedTable(site.module, self.initial)
            model = replace(model, site, gated)
            tables.append((site, gated))
        if self.by == "gates":
            rewound = self._search(model, [table for _, table in tables], task, context)
            model.load_state_dict(rewound)
        else:
            _count(model, [table for _, table in tables], task)
        self._cut([table for _, table in tables], context)
        retrain.train(model, task, context)
        return self._store(model, tables, before, context)

    def _sites(self, model: nn.Module, context: Context) -> list[Site]:
        found = self.candidates(model, TABLES, context, self._reject, (PrunedEmbedding,))
        return require(found, self, model, context)

    def _reject(self, table: Any) -> str | None:
        if not table.weight.requires_grad:
            return "is frozen: its rows could not be retrained"
        share = self.keep if self.penalty is None or self.by == "frequency" else 0.0
        rows = table.num_embeddings
        if 4 * rows * table.embedding_dim * (1 - share) <= 4 * rows:
            return "has rows so short that the map of ids would take what dropped rows free"
        return too_small(table, self.min_rows)

    def _search(self, model: nn.Module, tables: list[RowGatedTable], task: Task, context: Context) -> dict[str, Tensor]:
        """Train with soft gates and return the weights at the rewind point."""
        steps = sum(1 for _ in task.batches("train"))
        rate = self.initial / (self.cross_after * max(steps * self.search_epochs, 1))
        gates = GateOptimizer(tables, rate, self.penalty, self.keep, steps)
        hook = _Search(gates, self.search_epochs, min(self.rewind_epoch, self.search_epochs - 1), self.temperature)
        # the search runs its whole length: gates that have not hardened yet look worse on validation
        settings = dataclasses.replace(
            task.settings, epochs=self.search_epochs, patience=self.search_epochs + 1, plateau_factor=1.0
        )
        _train(model, task, context, settings, hook)
        context.findings["penalty"] = {"first": gates.used[0], "last": gates.used[-1]}
        return hook.saved

    def _cut(self, tables: list[RowGatedTable], context: Context) -> None:
        """Make the gates hard: positive ones stay, or the largest when a share was asked for."""
        logits = torch.cat([table.logits.detach() for table in tables])
        positive = float((logits > 0).float().mean())
        bound = 0.0
        if self.penalty is None or self.by == "frequency":
            bound = float(logits.kthvalue(max(1, len(logits) - max(1, round(self.keep * len(logits))))).values)
        for table in tables:
            table.keep = table.logits.detach() > bound
            if table.padding_idx is not None:
                table.keep[table.padding_idx] = True
        kept = sum(int(table.keep.sum()) for table in tables if table.keep is not None)
        context.findings["gates"] = {"positive": round(positive, 4), "kept": kept, "of": len(logits)}

    def _store(
        self, model: nn.Module, tables: list[tuple[Site, RowGatedTable]], before: list[int], context: Context
    ) -> nn.Module:
        """Replace gated tables by kept rows, one zero row and the map of ids."""
        saved = 0
        for (site, table), size in zip(tables, before, strict=True):
            made = stored_rows(table)
            context.findings.setdefault("tables", {})[site.path] = _by_field(table)
            saved += size - module_bytes(made)
            model = replace(model, Site(site.paths, table), made)
        if saved <= 0:
            raise self.nothing_matched(model, "the gates closed too few rows to pay for the map of ids")
        return model


class _Search(Hook):
    """Steps the gates beside the weights, hardens them epoch by epoch, and keeps the weights of the rewind point."""

    def __init__(self, gates: GateOptimizer, epochs: int, rewind: int, final: float) -> None:
        self.gates, self.epochs, self.rewind, self.final = gates, epochs, rewind, final
        self.saved: dict[str, Tensor] = {}

    def start(self, model: nn.Module) -> None:
        """Keep the initial weights when the rewind point is the start."""
        if self.rewind == 0:
            self._keep(model)

    def before_step(self, model: nn.Module, step: int) -> None:  # noqa: ARG002
        """Move the gates by their own optimiser."""
        self.gates.step()

    def epoch_end(self, model: nn.Module, epoch: int, score: float) -> None:  # noqa: ARG002
        """Raise the steepness to final^(epoch / (epochs - 1)) and keep the weights of the rewind point."""
        for table in self.gates.tables:
            table.temperature = self.final ** (min(epoch, self.epochs - 1) / (self.epochs - 1))
        if epoch == self.rewind:
            self._keep(model)

    def _keep(self, model: nn.Module) -> None:
        self.saved = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _train(model: nn.Module, task: Task, context: Context, settings: FitSettings, hook: Hook) -> None:
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        task.train(model, seed=context.seed, settings=settings, hooks=(hook,), log=context.log)
    context.train_seconds += time.perf_counter() - start


@torch.no_grad()
def _count(model: nn.Module, tables: list[RowGatedTable], task: Task) -> None:
    """Set each gate to how often training asks for its row; of equals the first stay."""
    for table in tables:
        table.seen = torch.zeros(table.num_embeddings)
    for batch in task.batches("train"):
        task.predict(model, batch)
    for table in tables:
        assert table.seen is not None
        table.logits = table.seen.double() - torch.arange(table.num_embeddings) / (2.0 * table.num_embeddings)
        table.seen = None


def stored_rows(table: RowGatedTable) -> PrunedEmbedding:
    """Return the kept rows, already multiplied by the gate, in order of id, and one zero row for all others."""
    if table.keep is None:
        raise ValueError("the gates are still soft; cut them first")
    kept = torch.nonzero(table.keep).squeeze(1)
    position = torch.full((table.num_embeddings,), len(kept), dtype=torch.int32)
    position[kept] = torch.arange(len(kept), dtype=torch.int32)
    rows = table.rows.detach()[kept] * table.scale
    return PrunedEmbedding.from_dense(table.shape, torch.cat([rows, torch.zeros(1, rows.shape[1])]), position)


def _by_field(table: RowGatedTable) -> dict[str, Any]:
    keep = table.keep if table.keep is not None else torch.ones(table.num_embeddings, dtype=torch.bool)
    return {
        block.name: {"kept": int(keep[block.start : block.start + block.rows].sum()), "of": block.rows}
        for block in blocks(table.shape)
        if block.name
    }
