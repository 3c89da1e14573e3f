"""OptFS: the gate's closed forms, the rewind, exact storage, noise rows pruned first, the vocabulary rewritten."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lessen.errors import NothingMatchedError
from lessen.export.renumber import take_maps_out, with_new_ids
from lessen.method import Context
from lessen.methods.features._shared.gates import GateOptimizer, RowGatedTable
from lessen.methods.features.optfs import OptFS, _Search, stored_rows
from lessen.methods.sites import state_bytes
from lessen.recipe import Recipe
from lessen.stored.fields import FieldEmbedding
from lessen.stored.tables.pruned_embedding import PrunedEmbedding
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions


@pytest.fixture(scope="module")
def task():
    return SyntheticClicks(SyntheticOptions(rows=16_000, fields=4, noise_fields=4, rows_per_field=200, strength=1.5))


@pytest.fixture(scope="module")
def compact(task):
    torch.manual_seed(0)
    reference = task.build().eval()
    model, ledger = Recipe([OptFS(keep=0.2)]).apply(reference, task)
    return reference, model, ledger[0]


def test_the_gate_is_one_at_the_start_and_keeps_the_output():
    table = nn.Embedding(50, 4, padding_idx=0)
    gated = RowGatedTable(table, 0.5)
    ids = torch.arange(50)
    assert gated.gate().detach().sub(1).abs().max() < 1e-6
    assert torch.allclose(gated(ids), table(ids), atol=1e-6)


def test_the_soft_gate_ends_as_the_hard_one():
    gated = RowGatedTable(nn.Embedding(4, 2), 0.5)
    with torch.no_grad():
        gated.logits.copy_(torch.tensor([0.02, -0.02, 0.5, -1.0]))
    gated.temperature = 1000.0
    soft = gated.gate().detach()
    gated.keep = gated.logits.detach() > 0
    assert (soft - gated.gate()).abs().max() < 1e-3


@pytest.mark.parametrize(("penalty", "crossing"), [(1e-6, 1713), (1e-4, 1646)])
def test_unseen_values_cross_zero_when_the_closed_form_says(penalty, crossing):
    """Adam on lambda * tau * s(1 - s) alone, at lr 3e-4 in epoch 0 (tau = 1): steps from the sheet's simulation."""
    table = RowGatedTable(nn.Embedding(1, 2), 0.5)
    gates = GateOptimizer([table], 3e-4, penalty, 0.5, 100)
    steps = 0
    while float(table.logits.detach()[0]) > 0:
        gates.step()
        steps += 1
    assert steps == pytest.approx(crossing, abs=2)


def test_the_steered_penalty_leaves_the_share_open():
    """Gate i is pulled open by the loss with strength pull[i]: a fifth of them has to win, the strongest."""
    table = RowGatedTable(nn.Embedding(100, 2), 0.5)
    gates = GateOptimizer([table], 0.01, None, 0.2, 40)
    pull = torch.linspace(0.001, 0.1, 100)
    for _ in range(700):
        gate = torch.sigmoid(table.logits.detach())
        table.logits.grad = -pull * gate * (1 - gate)
        gates.step()
    opened = table.logits.detach() > 0
    assert opened[-10:].all()
    assert not opened[:50].any()
    assert 12 <= int(opened.sum()) <= 30


@pytest.mark.slow
def test_gates_select_as_well_as_the_published_rule_and_better_than_frequency(task):
    """At the share that the published rule leaves open under a constant penalty; one seed alone tells nothing here."""
    reference, gained, beyond = task.build().eval(), [], []
    for seed in range(3):
        published, (record,) = Recipe([OptFS(penalty=1e-4)]).apply(reference, task, seed=seed)
        keep = record.findings["gates"]["kept"] / record.findings["gates"]["of"]
        gates, (record,) = Recipe([OptFS(keep=keep)]).apply(reference, task, seed=seed)
        frequent, _ = Recipe([OptFS(keep=keep, by="frequency")]).apply(reference, task, seed=seed)
        assert record.findings["gates"]["positive"] == pytest.approx(keep, abs=0.12)
        gained.append(task.score(gates, "test") - task.score(published, "test"))
        beyond.append(task.score(gates, "test") - task.score(frequent, "test"))
    assert sum(gained) / 3 > -0.01
    assert sum(beyond) > 0


def test_the_control_keeps_the_most_frequent_rows(task):
    model, (record,) = Recipe([OptFS(keep=0.2, by="frequency")]).apply(task.build().eval(), task)
    seen = task.splits["train"].occurrences()
    kept = model.vectors.table.position.long() != model.vectors.table.kept - 1
    assert record.findings["gates"]["kept"] == int(kept.sum()) == round(0.2 * len(kept)) + 1  # and the padding row
    assert seen[1:][kept[1:]].min() >= seen[~kept].max()


def test_hook_rewinds_to_the_epoch_asked_for():
    model = nn.Linear(2, 1)
    gates = GateOptimizer([RowGatedTable(nn.Embedding(3, 2), 0.5)], 0.1, 1e-3, 0.5, 2)
    hook = _Search(gates, epochs=3, rewind=1, final=100.0)
    hook.start(model)
    assert hook.saved == {}
    with torch.no_grad():
        model.weight.fill_(1.0)
    hook.epoch_end(model, 1, 0.0)
    assert gates.tables[0].temperature == pytest.approx(10.0)
    with torch.no_grad():
        model.weight.fill_(2.0)
    hook.epoch_end(model, 2, 0.0)
    assert gates.tables[0].temperature == pytest.approx(100.0)
    assert (hook.saved["weight"] == 1.0).all()


@pytest.mark.parametrize("mode", ["embedding", "bag"])
def test_stored_rows_reproduce_the_hard_gates_exactly(mode):
    table = nn.Embedding(40, 6, padding_idx=0) if mode == "embedding" else nn.EmbeddingBag(40, 6, mode="mean")
    gated = RowGatedTable(table, 0.5)
    gated.keep = torch.arange(40) % 3 == 0
    made = stored_rows(gated)
    ids = torch.randint(0, 40, (7, 3))
    assert torch.equal(made(ids), gated(ids))
    assert made.kept == 14 + 1


def test_it_keeps_the_share_and_drops_noise_first(task, compact):
    _, model, record = compact
    table = model.vectors.table
    assert isinstance(table, PrunedEmbedding)
    assert record.findings["gates"]["kept"] == pytest.approx(0.2 * table.num_embeddings, abs=2)
    fields = record.findings["tables"]["vectors.table"]
    signal = sum(fields[f"field{i}"]["kept"] for i in range(4))
    noise = sum(fields[f"field{i}"]["kept"] for i in range(4, 8))
    assert signal > 2.5 * noise
    assert record.bytes_after < 0.5 * record.bytes_before


def test_learned_gates_beat_random_ones(task, compact, monkeypatch):
    def random_gates(self, model, tables, task, context):
        for table in tables:
            table.logits = torch.randn(table.num_embeddings, generator=context.generator)
        return model.state_dict()

    monkeypatch.setattr(OptFS, "_search", random_gates)
    drawn, _ = Recipe([OptFS(keep=0.2)]).apply(compact[0], task)
    assert task.score(compact[1], "test") > task.score(drawn, "test") + 0.05


def test_the_vocabulary_is_rewritten_so_that_no_map_is_left(task, compact):
    model = compact[1]
    plain, maps = take_maps_out(model)
    assert state_bytes(model) - state_bytes(plain) == 4 * model.vectors.table.num_embeddings
    assert type(plain.vectors.table) is nn.Embedding
    rewritten = with_new_ids(task, maps["vectors.table"])
    before, _ = task.predictions(model)
    after, _ = rewritten.predictions(plain)
    assert (before == after).all()
    with pytest.raises(NothingMatchedError, match="no pruned table"):
        take_maps_out(plain)


def test_nothing_to_do_is_an_error(task, compact):
    with pytest.raises(NothingMatchedError):
        OptFS().apply(compact[1], task, Context())
    with pytest.raises(NothingMatchedError, match="min_rows"):
        OptFS(min_rows=10**6).apply(task.build(), task, Context())
    model = task.build()
    model.vectors.table = FieldEmbedding(model.vectors.table.segments, 1)
    with pytest.raises(NothingMatchedError, match="rows so short"):
        OptFS().apply(model, task, Context())
