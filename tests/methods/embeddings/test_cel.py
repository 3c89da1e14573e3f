from __future__ import annotations

import pytest
import torch
from torch import nn

from frozen_tables import assert_tables_learned
from lessen.method import Context
from lessen.methods.embeddings._shared.retrained import Wanted
from lessen.methods.embeddings.cel import ClusterLearningTables, Growth, Splitting, grow, principal_split, reassign
from lessen.methods.sites import module_bytes
from lessen.recipe import Recipe
from lessen.stored.tables.cluster_assigned import ClusterAssignedEmbedding
from lessen.stored.tables.embedding import TableShape
from lessen.testing.toys import TableTask


def growth(clusters=8, rows=60, dim=4):
    table = ClusterAssignedEmbedding(TableShape(rows, dim), [], [clusters])
    nn.init.normal_(table.centres.weight, generator=torch.Generator().manual_seed(0))
    return Growth.of(table)


def test_a_split_leaves_outputs_unchanged_partitions_the_members_and_adds_one_cluster():
    known = growth()
    before = known.table.dequantise()
    known.gradients.normal_(generator=torch.Generator().manual_seed(1))
    assert grow(known, 0) == 1
    assert known.active == [2]
    assert torch.equal(known.table.dequantise(), before)
    sizes = torch.bincount(known.table.assignment(torch.arange(60)))
    assert len(sizes) == 2
    assert int(sizes.min()) > 0
    assert grow(known, 0) == 2
    assert known.active == [4]


def test_the_budget_of_clusters_is_never_passed():
    known = growth(clusters=5)
    for seed in range(6):
        known.gradients.normal_(generator=torch.Generator().manual_seed(seed))
        grow(known, 0)
    assert known.active == [5]
    assert int(known.table.assignment(torch.arange(60)).max()) == 4


def test_opposite_gradients_are_separated_exactly_and_the_axis_is_that_of_the_svd():
    generator = torch.Generator().manual_seed(0)
    group = torch.rand(40, generator=generator) < 0.4
    rows = torch.randn(40, 5, generator=generator) * 0.05 + torch.where(group, 1.0, -1.0).unsqueeze(1)
    rows[3] = 0.0
    side = principal_split(rows)
    known = torch.arange(40) != 3
    assert torch.equal(side[known], group[known]) or torch.equal(side[known], ~group[known])
    assert not bool(side[3])
    unit = nn.functional.normalize(rows[known])
    axis = torch.linalg.svd(unit - unit.mean(dim=0))[2][0]
    expected = (unit - unit.mean(dim=0)) @ axis > 0
    assert torch.equal(side[known], expected) or torch.equal(side[known], ~expected)


def test_ids_move_to_the_sibling_only_where_the_loss_falls():
    known = growth(clusters=2, rows=4)
    known.active, known.siblings = [2], [torch.tensor([1, 0])]
    known.table.assign(torch.tensor([2, 3]), torch.tensor([1, 1]))
    difference = (known.table.centres.weight[1] - known.table.centres.weight[0]).detach()
    known.gradients.copy_(torch.stack([-difference, difference, difference, -difference]))
    assert reassign(known, 0) == 2
    assert known.table.assignment(torch.arange(4)).tolist() == [1, 0, 0, 1]


def by_group(values, group):
    return [values[group == number] for number in group.unique()]


def adjusted_rand(found, truth):
    """Agreement of two partitions over pairs of ids, 0 in expectation for random ones and 1 for equal ones."""
    table = torch.zeros(int(found.max()) + 1, int(truth.max()) + 1, dtype=torch.float64)
    table.index_put_((found, truth), torch.ones(len(found), dtype=torch.float64), accumulate=True)

    def pairs(counts):
        return float((counts * (counts - 1)).sum()) / 2

    rows, columns = pairs(table.sum(dim=1)), pairs(table.sum(dim=0))
    expected = rows * columns / pairs(torch.tensor(float(len(found))))
    return (pairs(table) - expected) / ((rows + columns) / 2 - expected)


def test_planted_clusters_are_mostly_recovered():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 8, (160,), generator=generator)
    targets = torch.randn(8, 6, generator=generator)[truth]
    table = ClusterAssignedEmbedding(TableShape(160, 6), [], [8])
    nn.init.normal_(table.centres.weight, std=0.1, generator=generator)
    hook, optimizer = Splitting(25), torch.optim.Adam(table.parameters(), 0.05)
    hook.start(table)
    for number in range(1, 401):
        ids = torch.randint(0, 160, (128,), generator=generator)
        optimizer.zero_grad()
        (table(ids) - targets[ids]).square().sum(dim=1).mean().backward()
        optimizer.step()
        hook.after_step(table, number)
    hook.finish(table)
    found = table.assignment(torch.arange(160))
    assert adjusted_rand(found, truth) > 0.6
    # far below the best that eight vectors can do which ids share by a hash: the means of its groups
    error = (table.dequantise() - targets).square().sum()
    hashed = torch.arange(160) % 8
    assert float(error) < 0.3 * sum(float((part - part.mean(0)).square().sum()) for part in by_group(targets, hashed))
    # no more than twice the best for the groups that were found
    assert float(error) < 2 * sum(float((part - part.mean(0)).square().sum()) for part in by_group(targets, found))
    assert not table._forward_hooks


def test_a_share_is_met_and_the_model_learns():
    task = TableTask()
    result, ledger = Recipe([ClusterLearningTables(share=0.3, every=3)]).apply(task.reference(0), task)
    assert ledger[0].findings["share"] == pytest.approx(0.3, rel=0.02)
    assert_tables_learned(result, task)


def test_those_who_leave_are_the_positive_side_and_the_halves_know_each_other():
    known = growth()
    known.gradients.normal_(generator=torch.Generator().manual_seed(1))
    side = principal_split(known.gradients)
    assert grow(known, 0) == 1
    assert torch.equal(known.table.assignment(torch.arange(60)) == 1, side)
    assert torch.equal(known.table.centres.weight[1], known.table.centres.weight[0])
    assert known.siblings[0].tolist() == [1, 0] + [-1] * 6


def test_clusters_split_by_need_from_half_the_mean_on_and_the_neediest_first():
    known = growth(clusters=8, rows=60)
    known.active = [4]
    codes = torch.arange(60) % 4
    known.table.assign(torch.arange(60), codes)
    directions = nn.functional.normalize(torch.randn(60, 4, generator=torch.Generator().manual_seed(2)))
    # needs of 15 ids each: 15 x (1, 8, 0.9, 2); half their mean is 15 x 1.49
    known.gradients.copy_(directions * torch.tensor([1.0, 8.0, 0.9, 2.0])[codes].unsqueeze(1))
    centres = known.table.centres.weight.detach().clone()
    assert grow(known, 0) == 2
    assert known.siblings[0].tolist() == [-1, 4, -1, 5, 1, 3, -1, -1]
    assert torch.equal(known.table.centres.weight[4:6], centres[[1, 3]])
    after = known.table.assignment(torch.arange(60))
    assert torch.equal(after[codes % 2 == 0], codes[codes % 2 == 0])
    for cluster, new in ((1, 4), (3, 5)):
        members = (codes == cluster).nonzero()[:, 0]
        assert torch.equal(after[members] == new, principal_split(known.gradients[members]))
    # with room for one more only the neediest splits
    room = growth(clusters=5, rows=60)
    room.active = [4]
    room.table.assign(torch.arange(60), codes)
    room.gradients.copy_(known.gradients)
    assert grow(room, 0) == 1
    assert room.siblings[0].tolist() == [-1, 4, -1, -1, 1]


def test_fields_split_by_themselves_and_small_ones_never():
    shape = TableShape(101, 4, padding_idx=0, segments=[("a", 1, 40), ("tiny", 41, 5), ("b", 46, 55)])
    table = ClusterAssignedEmbedding(shape, [0, 2], [4, 6])
    nn.init.normal_(table.centres.weight, generator=torch.Generator().manual_seed(0))
    known, before = Growth.of(table), table.dequantise()
    known.gradients[40:].normal_(generator=torch.Generator().manual_seed(1))
    assert [grow(known, 0), grow(known, 1)] == [0, 1]
    assert known.active == [1, 2]
    assert not bool(table.assignment(torch.arange(40)).any())
    assert torch.equal(table.dequantise(), before)
    assert known.parts() == [(slice(0, 40), 0), (slice(40, 95), 4)]


def test_sums_are_those_of_all_steps_and_occurrences_until_a_split_clears_them():
    table = ClusterAssignedEmbedding(TableShape(12, 3, padding_idx=0, segments=[("a", 1, 11)]), [0], [4])
    hook = Splitting(3)
    hook.start(table)
    generator, expected = torch.Generator().manual_seed(0), torch.zeros(11, 3)
    for step in (1, 2):
        ids = torch.randint(0, 12, (4, 5), generator=generator)
        weights = torch.randn(4, 5, 3, generator=generator)
        (table.train()(ids) * weights).sum().backward()
        inside = ids.flatten() > 0
        expected.index_add_(0, ids.flatten()[inside] - 1, weights.view(-1, 3)[inside])
        hook.after_step(table, step)
    table.eval()(torch.arange(12))
    assert torch.allclose(hook.tables[0].gradients, expected, atol=1e-6)
    side = principal_split(hook.tables[0].gradients)
    hook.after_step(table, 3)
    assert torch.equal(table.assignment(torch.arange(11)) == 1, side)
    assert not bool(hook.tables[0].gradients.any())
    hook.finish(table)


def test_gradients_of_a_float16_table_are_summed_in_float32():
    table = ClusterAssignedEmbedding(TableShape(6, 2, output_dtype="float16"), [], [2])
    hook = Splitting(5)
    hook.start(table)
    table.train()(torch.tensor([3, 3])).sum().backward()
    assert hook.tables[0].gradients.dtype == torch.float32
    assert hook.tables[0].gradients[3].tolist() == [2.0, 2.0]
    hook.finish(table)


def test_moves_are_exactly_those_whose_first_order_change_is_negative():
    known = growth(clusters=6, rows=60)
    generator = torch.Generator().manual_seed(3)
    known.active, known.siblings = [6], [torch.tensor([3, -1, 5, 0, -1, 2])]
    codes = torch.randint(0, 6, (60,), generator=generator)
    known.table.assign(torch.arange(60), codes)
    known.gradients.normal_(generator=generator)
    other, centres = known.siblings[0][codes], known.table.centres.weight.detach()
    moves = [
        int(other[i]) >= 0 and float(known.gradients[i] @ (centres[other[i]] - centres[codes[i]])) < 0
        for i in range(60)
    ]
    assert reassign(known, 0) == sum(moves) > 0
    assert torch.equal(known.table.assignment(torch.arange(60)), torch.where(torch.tensor(moves), other, codes))
    # the same gradients now speak against the way back
    assert reassign(known, 0) == 0


@pytest.mark.parametrize(("ratio", "width"), [(0.01, 1), (0.2, 2)])
def test_bytes_are_codes_centres_and_small_fields(ratio, width):
    shape = TableShape(3051, 8, padding_idx=0, segments=[("a", 1, 2000), ("b", 2001, 50), ("c", 2051, 1000)])
    wanted = Wanted(nn.Embedding(3051, 8, padding_idx=0), shape, None, None)
    made = ClusterLearningTables(ratio=ratio).replacement(wanted, Context())
    clusters = [round(2000 * ratio), round(1000 * ratio)]
    assert made.clusters == clusters
    assert not bool(made.codes.any())
    assert module_bytes(made) == 3000 * width + 32 * sum(clusters) + 32 * 51
