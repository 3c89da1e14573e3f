"""Column selection, ranked selection and what they share: exact narrowing, ignored fields, redundant groups, checks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.data.columns import Columns, IdField, Layout
from lessen.errors import BudgetError, NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.features._shared.effects import field_effects, redundant_groups
from lessen.methods.features._shared.explain import explain
from lessen.methods.features._shared.fields import names_of, narrow_model, narrowed
from lessen.methods.features.column_selection import ColumnSelection
from lessen.methods.features.optfs import OptFS
from lessen.methods.features.ranked_selection import RankedSelection
from lessen.methods.sites import state_bytes
from lessen.recipe import Recipe
from lessen.stored.fields import Segment
from lessen.stored.tables.selected_fields import SelectedFields
from lessen.task import Task
from lessen.tasks.ctr.base import ClickTask
from lessen.tasks.ctr.layers import FieldVectors
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions
from lessen.train.settings import FitSettings


@pytest.fixture(scope="module")
def task():
    return SyntheticClicks(SyntheticOptions(rows=12_000, fields=4, noise_fields=4, rows_per_field=60, strength=1.5))


@pytest.fixture(scope="module")
def reference(task):
    return task.reference()


@pytest.fixture
def numbers():
    """Two id fields and three numbers: one that tells the label by its distance from 0, one constant, one noise."""
    generator = torch.Generator().manual_seed(0)
    layout = Layout(
        (IdField("told", "categorical", 0, 1, "told"), IdField("idle", "categorical", 1, 1, "idle")),
        (Segment("told", 1, 4), Segment("idle", 5, 50)),
        ("distance", "constant", "noise"),
    )

    def split(rows: int) -> Columns:
        label = torch.randint(0, 2, (rows,), generator=generator)
        told = 1 + torch.where(torch.rand(rows, generator=generator) < 0.3, label, 2)
        idle = torch.randint(5, 55, (rows,), generator=generator)
        sign = torch.randint(0, 2, (rows,), generator=generator) * 2 - 1
        distance = sign * (torch.rand(rows, generator=generator) + 0.5 * label)
        numeric = torch.stack([distance, torch.ones(rows), torch.randn(rows, generator=generator)], dim=1)
        return Columns(torch.stack([told, idle], dim=1).int(), label.float(), layout, numeric)

    splits = {"train": split(6_000), "validation": split(1_000), "test": split(1_000)}
    task = ClickTask("deepfm", layout, splits, {"dim": 4, "hidden": (8,)})
    task.name, task.settings = "numbers", FitSettings(epochs=1)
    return task


def test_ranked_selection_ranks_numbers_by_their_bins(numbers):
    model, (record,) = Recipe([RankedSelection()]).apply(numbers.reference(), numbers)
    assert record.findings["fields"] == {"kept": ["told", "distance"], "dropped": ["constant", "idle", "noise"]}
    assert record.findings["ranking"]["distance"]["nats"] > 0.05  # correlation would not see it
    batch = numbers.example_batch()
    before = numbers.forward(model, batch)
    batch[0]["numeric"][:, 1:] = 7.0
    assert torch.equal(numbers.forward(model, batch), before)


@pytest.fixture
def mixed():
    layout = Layout(
        (
            IdField("user", "categorical", 0, 1, "user"),
            IdField("item", "categorical", 1, 1, "item"),
            IdField("history", "sequence", 2, 3, "item"),
            IdField("hour", "categorical", 5, 1, "hour"),
        ),
        (Segment("user", 1, 10), Segment("item", 11, 20), Segment("hour", 31, 24)),
        ("age", "price"),
    )
    ids = torch.stack(
        [torch.randint(1, 11, (40,)), *(torch.randint(11, 31, (40,)) for _ in range(4)), torch.randint(31, 55, (40,))],
        dim=1,
    ).int()
    ids[::3, 3:5] = 0
    return Columns(ids, (torch.arange(40) % 2).float(), layout, torch.randn(40, 2))


@pytest.mark.parametrize("keep", [["history", "price"], ["user", "hour", "age", "price"], ["item", "history", "hour"]])
def test_narrow_vectors_equal_the_full_ones_of_the_kept_fields(mixed, keep):
    full = FieldVectors(mixed.layout, 5)
    layout, pick, shift = narrowed(mixed.layout, keep)
    part = FieldVectors(layout, 5)
    small = SelectedFields(
        mixed.layout.width, list(zip(part.widths, part.pooled, strict=True)), layout.segments, 5, len(layout.numeric)
    )
    small.pick.copy_(torch.tensor(pick))
    small.shift.copy_(torch.tensor(shift))
    with torch.no_grad():
        for new, old in ((n, o) for n in layout.segments for o in mixed.layout.segments if n.name == o.name):
            small.table.weight[new.start : new.start + new.rows] = full.table.weight[old.start : old.start + old.rows]
        small.table.weight[0] = 0
        if small.values is not None:
            numbers = [mixed.layout.numeric.index(name) for name in layout.numeric]
            small.numbers.copy_(torch.tensor(numbers))
            small.values.copy_(full.values[numbers])
    order = [*(f.name for f in mixed.layout.single), *(f.name for f in mixed.layout.pooled), *mixed.layout.numeric]
    rows = [number for number, name in enumerate(order) if name in keep]
    assert torch.equal(small(mixed.ids, mixed.numeric), full(mixed.ids, mixed.numeric)[:, rows])
    twin = SelectedFields.from_config(small.config())
    twin.load_state_dict(small.state_dict())
    assert torch.equal(twin(mixed.ids, mixed.numeric), small(mixed.ids, mixed.numeric))


def test_a_field_that_the_model_ignores_changes_nothing_exactly(task):
    model = narrow_model(task, ["field0", "field1"], Context()).eval()
    ignored, used = field_effects(model, task, [["field5"], ["field0"]], 2, torch.Generator().manual_seed(0))
    assert (ignored.effect, ignored.error, ignored.z) == (0.0, 0.0, 0.0)
    assert used.error > 0


def test_redundant_fields_are_one_group_and_keep_one_member(task):
    copied = SyntheticClicks(task.options)
    for columns in copied.splits.values():
        part = columns.ids[:, 0]
        columns.ids[:, 5] = part - 1 + copied.layout.segments[5].start  # field5 is field0 under other ids
    groups = redundant_groups(copied, 0.95)
    assert ["field0", "field5"] in groups
    assert len(groups) == 7
    _, (record,) = Recipe([ColumnSelection()]).apply(copied.reference(), copied)
    assert len({"field0", "field5"} & set(record.findings["fields"]["kept"])) == 1


def test_noise_fields_go_and_quality_rises(task, reference):
    model, (record,) = Recipe([ColumnSelection()]).apply(reference, task)
    kept = record.findings["fields"]["kept"]
    assert sorted(kept) == ["field0", "field1", "field2", "field3"]
    assert record.findings["check"]["passed"]
    assert task.score(model, "test") > task.score(reference, "test")
    assert record.bytes_after < 0.6 * record.bytes_before
    assert state_bytes(model.vectors.table) == 4 * 9 * (1 + 4 * 61)
    with pytest.raises(TaskError, match="put it first"):
        Recipe([OptFS(keep=0.4, search_epochs=2), RankedSelection()]).apply(reference, task)
    with pytest.raises(NothingMatchedError):
        Recipe([ColumnSelection(), RankedSelection()]).apply(reference, task)


def test_selected_fields_save_and_load(task, reference, tmp_path):
    from lessen.artifact.folder import load, save

    model, _ = Recipe([ColumnSelection(keep=2)]).apply(reference, task)
    save(tmp_path / "a", model, task.build())
    twin = load(tmp_path / "a", model=task.build())
    batch = task.example_batch()
    assert torch.equal(task.predict(twin, batch), task.predict(model, batch))


def test_ranked_selection_drops_noise(task, reference):
    model, (record,) = Recipe([RankedSelection()]).apply(reference, task)
    dropped = record.findings["fields"]["dropped"]
    assert set(dropped) <= {"field4", "field5", "field6", "field7"}
    assert len(dropped) >= 3
    assert task.score(model, "test") > task.score(reference, "test") - 0.005


@pytest.mark.parametrize("by", ["score", "3mr", "forward"])
def test_other_rules_keep_the_number_asked_for(task, reference, by):
    _, (record,) = Recipe([RankedSelection(by=by, keep=3, crosses=10)]).apply(reference, task)
    kept = record.findings["fields"]["kept"]
    assert len(kept) == 3
    assert set(kept) <= {"field0", "field1", "field2", "field3"}


def test_selection_then_row_pruning_compose(task, reference):
    model, ledger = Recipe([ColumnSelection(), OptFS(keep=0.6, search_epochs=3)]).apply(reference, task)
    assert ledger[1].bytes_after < ledger[0].bytes_after < ledger[0].bytes_before
    assert ledger[1].findings["start"] == "given model"
    frozen = task.build()
    frozen.vectors.requires_grad_(False)
    task.train(frozen)
    assert task.score(model, "test") > task.score(frozen, "test")


def test_the_surrogate_states_its_fidelity(task, reference):
    pytest.importorskip("sklearn")
    told = explain(reference, task, ["field0", "field1"], 0)
    more = explain(reference, task, names_of(task.layout), 0)
    assert "log odds of field0" in told["rules"]
    assert told["fidelity_r2"] < more["fidelity_r2"] <= 1.0
    assert 0.5 < told["auc_tree"] < told["auc_model"]
    assert told["leaves"] <= 32
    assert told == explain(reference, task, ["field0", "field1"], 0)


@pytest.mark.parametrize("model", ["fm", "dcnv2", "ipnn", "xdeepfm", "autoint", "fgcnn", "dlrm", "lr"])
def test_every_model_is_narrowed(model):
    from lessen.tasks.ctr.models import MODELS

    small = SyntheticClicks(SyntheticOptions(rows=300, fields=3, noise_fields=1, rows_per_field=20))
    small.model, small.arguments = model, {}
    narrow = narrow_model(small, ["field0", "field2", "field3"], Context())
    assert state_bytes(narrow) < state_bytes(MODELS[model](small.layout))


def test_models_that_read_ids_elsewhere_are_refused():
    from lessen.tasks.ctr.models import MODELS

    class Peeking(nn.Module):
        def __init__(self, layout):
            super().__init__()
            self.vectors = FieldVectors(layout, 4)

        def forward(self, ids, numeric=None):
            return self.vectors(ids, numeric).sum(dim=(1, 2)) + ids[:, -1]

    small = SyntheticClicks(SyntheticOptions(rows=300, fields=3, rows_per_field=20))
    small.model, small.arguments = "peeking", {}
    MODELS["peeking"] = Peeking
    try:
        with pytest.raises(TaskError, match="outside its field vectors"):
            narrow_model(small, ["field0", "field1"], Context())
    finally:
        del MODELS["peeking"]


def test_refusals(task, reference):
    class Other(Task):
        name = "other"
        metrics = task.metrics
        provides = task.provides

        def build(self):
            return nn.Sequential(nn.Linear(2, 1))

        def batches(self, split, seed=0):
            return []

        def loss(self, model, batch):
            return torch.zeros(())

    for method in (ColumnSelection(), RankedSelection()):
        with pytest.raises(NothingMatchedError, match="FieldVectors"):
            method.apply(nn.Sequential(nn.Linear(2, 1)), task, Context())
        with pytest.raises(TaskError, match="no columns"):
            method.apply(reference, Other(), Context())
    with pytest.raises(BudgetError, match="no id field"):
        narrowed(task.layout, ["nothing"])
    with pytest.raises(BudgetError, match="would keep no id field"):
        ColumnSelection(threshold=100).apply(reference, task, Context())
    with pytest.raises(NothingMatchedError, match="every field earns"):
        ColumnSelection(keep=8).apply(reference, task, Context())
