from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lessen.errors import InputError
from lessen.tokens import plans


def merge_by_loop(x, metric, size, removed, protected):
    """ToMe in plain Python: greedy dictionary of groups, no ties."""
    unit = F.normalize(metric, dim=-1)
    outputs, sizes = [], []
    for b in range(len(x)):
        best = {}
        for i in range(0, x.shape[1], 2):
            odd = [j for j in range(1, x.shape[1], 2) if j >= protected]
            if i >= protected:
                best[i] = max((float(unit[b, i] @ unit[b, j]), j) for j in odd)
        chosen = sorted(best, key=lambda i: -best[i][0])[:removed]
        into = {i: best[i][1] for i in chosen}
        order = [i for i in range(0, x.shape[1], 2) if i not in into] + list(range(1, x.shape[1], 2))
        members = [[t] + [i for i in into if into[i] == t] for t in order]
        total = [sum(size[b, m] for m in group) for group in members]
        outputs.append(
            torch.stack([sum(x[b, m] * size[b, m] for m in g) / t for g, t in zip(members, total, strict=True)])
        )
        sizes.append(torch.stack(total))
    return torch.stack(outputs), torch.stack(sizes)


@pytest.mark.parametrize("protected", [0, 1, 2, 5])
@pytest.mark.parametrize("tokens", [22, 23])
def test_matching_and_merging_equal_the_loop_gradients_included(protected, tokens):
    metric = torch.randn(2, tokens, 4)
    size = torch.randint(1, 4, (2, tokens)).float()
    grads = []
    x = torch.randn(2, tokens, 6)
    for way in ("plan", "loop"):
        leaf = x.clone().requires_grad_()
        if way == "plan":
            plan = plans.merge_pairs(tokens, *plans.match_alternating(metric, 6, protected))
            merged, sizes = plan.features(leaf, size), plan.sizes(size)
        else:
            merged, sizes = merge_by_loop(leaf, metric, size, 6, protected)
        (merged * torch.arange(merged.numel()).view_as(merged)).sum().backward()
        grads.append((merged.detach(), sizes, leaf.grad))
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-5)
    assert torch.allclose(grads[0][1].sum(1), size.sum(1))
    # sizes times features are preserved
    assert torch.allclose((grads[0][0] * grads[0][1][..., None]).sum(1), (x * size[..., None]).sum(1), atol=1e-4)


@pytest.mark.parametrize("protected", [0, 1, 2, 3])
def test_protected_tokens_keep_value_and_order(protected):
    x = torch.randn(3, 17, 5)
    plan = plans.merge_pairs(17, *plans.match_alternating(x, 5, protected))
    where = plan.row[:, :protected]
    assert torch.equal(plan.features(x).gather(1, where[..., None].expand(-1, -1, 5)), x[:, :protected])
    if protected:
        assert (where[:, 0] == 0).all()
    assert all((plan.row == where[:, i : i + 1]).sum() == 3 for i in range(protected))


def test_zero_keys_match_without_nan():
    metric = torch.zeros(1, 8, 4)
    plan = plans.merge_pairs(8, *plans.match_alternating(metric, 2, 1))
    assert torch.isfinite(plan.features(torch.randn(1, 8, 3))).all()


def test_random_pairs_are_legal_for_every_draw():
    for seed in range(30):
        draw = torch.rand(1, 15, generator=torch.Generator().manual_seed(seed)).expand(2, -1)
        source, target = plans.match_random(2, 15, 4, 3, draw)
        assert (source >= 2).all()  # even positions 4, 6, ... : 0 and 2 are protected
        assert ((target >= 1) & (target < 7)).all()
        plan = plans.merge_pairs(15, source, target)
        assert plan.row.max() == plan.kept - 1
        assert plan.sizes().sum(1).tolist() == [15.0, 15.0]


def test_keeping_partitions_the_tokens_in_image_order():
    scores = torch.rand(2, 12)
    plan = plans.keep_best(scores, 6, 2)
    assert plan.kept == 6
    assert plan.source[:, :2].tolist() == [[0, 1]] * 2
    assert (plan.source[:, 1:] > plan.source[:, :-1]).all()
    best = 2 + scores[:, 2:].topk(4).indices.sort().values
    assert torch.equal(plan.source[:, 2:], best)
    assert (plan.row >= 0).sum(1).tolist() == [6, 6]


def test_the_fused_token_is_the_raw_weighted_sum():
    scores, x = torch.rand(2, 9), torch.randn(2, 9, 4)
    plan = plans.keep_best(scores, 5, 1, fuse=True)
    out = plan.features(x)
    assert out.shape == (2, 6, 4)
    rest = plan.row == 5
    assert torch.allclose(out[:, 5], (x * (scores * rest)[..., None]).sum(1), atol=1e-6)
    kept = plans.keep_best(scores, 5, 1).features(x)
    assert torch.allclose(out[:, :5], kept)


def rank_by_loop(x, scores, pruned, merged):
    order = [0, *sorted(range(1, x.shape[0]), key=lambda i: -float(scores[i]))]
    head, tail = order[:merged], order[merged:pruned]
    groups, sizes = {h: [h] for h in head}, dict.fromkeys(head, 1.0)
    for t in tail:
        cosines = {h: float(F.cosine_similarity(x[t], x[h], dim=0)) for h in head[1:]}
        to = max(cosines, key=cosines.get)
        groups[to].append(t)
        sizes[to] += max(0.0, cosines[to])
    return torch.stack([x[groups[h]].mean(0) for h in head]), torch.tensor([sizes[h] for h in head])


def test_ranking_and_merging_equal_the_loop():
    x, scores = torch.randn(2, 14, 6), torch.rand(2, 14)
    plan = plans.rank_and_merge(scores, x, 11, 6, 1)
    for b in range(2):
        features, sizes = rank_by_loop(x[b], scores[b], 11, 6)
        assert torch.allclose(plan.features(x)[b], features, atol=1e-5)
        assert torch.allclose(plan.sizes()[b], sizes, atol=1e-5)
    assert (plan.sizes() >= 1).all()
    assert (plan.row < 0).sum(1).tolist() == [3, 3]


def test_pruning_and_then_merging_pairs_is_one_plan():
    x, scores, size = torch.randn(2, 14, 6), torch.rand(2, 14), torch.randint(1, 4, (2, 14)).float()
    kept = plans.keep_best(scores, 10, 1)
    plan = kept.then(plans.merge_similar(kept.features(x), 4, 1))
    left, sizes = kept.reduce(x, size)
    wanted, wanted_sizes = merge_by_loop(left, left, sizes, 4, 1)
    assert torch.allclose(plan.features(x, size), wanted, atol=1e-5)
    assert torch.equal(plan.sizes(size), wanted_sizes)
    assert (plan.row < 0).sum(1).tolist() == [4, 4]


def test_pooling_a_grid_equals_average_pooling():
    x = torch.randn(2, 1 + 24, 3)
    plan = plans.pool_grid((4, 6), (2, 3), 1, 2)
    grid = x[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
    wanted = F.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)
    assert torch.allclose(plan.features(x)[:, 1:], wanted, atol=1e-6)
    assert plan.sizes()[0].tolist() == [1.0] + [4.0] * 6
    with pytest.raises(InputError, match="no disjoint"):
        plans.pool_grid((4, 6), (3, 3), 1, 2)
