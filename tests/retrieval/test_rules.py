"""Closed forms of MadaCos, of FDP's folds, of a frozen bank and of fused features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lessen.errors import ConfigError, DataError
from lessen.retrieval.banks import bank_loss
from lessen.retrieval.folds import FoldedProbe, focused_pool, folded_convolutions
from lessen.retrieval.fusing import co_pca, fused
from lessen.retrieval.madacos import MadaCos


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_median_example_has_exactly_the_probability_that_was_asked_for():
    head, labels = MadaCos(16, 200, alpha=0.05), torch.randint(0, 200, (31,))
    features = F.normalize(head.weight.detach()[labels] + 0.02 * torch.randn(31, 16), dim=1)
    logits = head(features, labels)
    cosines = F.linear(features, F.normalize(head.weight, dim=1)).gather(1, labels[:, None])[:, 0]
    scale, margin = head.settled(F.linear(features, F.normalize(head.weight, dim=1)).detach(), labels)
    assert margin > 0
    assert scale >= 32
    place = int(cosines.median(dim=0).indices)
    assert float(logits.detach()[place].softmax(0)[labels[place]]) == pytest.approx(0.05, rel=1e-3)


def test_without_training_there_is_no_margin_and_gradients_pass_by_the_scale_alone():
    head, labels = MadaCos(8, 10), torch.arange(5)
    features = torch.randn(5, 8)
    cosines = F.linear(F.normalize(features, dim=1), F.normalize(head.weight, dim=1))
    scale, margin = head.settled(cosines.detach(), labels)
    torch.testing.assert_close(head.eval()(features, labels), scale * cosines)
    torch.testing.assert_close(head(features), 32 * cosines)
    own = F.one_hot(labels, 10)
    torch.testing.assert_close(head.train()(features, labels), scale * (cosines - margin * own))
    with pytest.raises(ConfigError):
        MadaCos(8, 10, alpha=1.0)


def test_convolutions_in_a_row_are_one():
    layers = [nn.Conv2d(12, 10, 1), nn.Conv2d(10, 6, 1, bias=False), nn.Conv2d(6, 1, 1)]
    maps = torch.randn(2, 12, 5, 7)
    made = folded_convolutions(layers)
    torch.testing.assert_close(made(maps), nn.Sequential(*layers)(maps), atol=1e-5, rtol=1e-5)
    assert sum(one.numel() for one in made.parameters()) == 13
    with pytest.raises(ConfigError, match="convolution 1"):
        folded_convolutions([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)])
    with pytest.raises(ConfigError, match="no convolution"):
        folded_convolutions([])


def test_attention_to_one_key_is_a_constant():
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    norm, key, pooled = nn.LayerNorm(16), torch.randn(16), torch.randn(5, 16)
    expected = pooled + norm(pooled + attention(pooled[:, None], key.expand(5, 1, 16), key.expand(5, 1, 16))[0][:, 0])
    value = nn.Linear(16, 16)
    with torch.no_grad():
        value.weight.copy_(attention.in_proj_weight[32:])
        value.bias.copy_(attention.in_proj_bias[32:])
    folded = FoldedProbe.of(key, value, attention.out_proj, norm)
    torch.testing.assert_close(folded(pooled), expected, atol=1e-5, rtol=1e-5)


def test_a_map_is_added_to_what_the_mean_attends_to():
    query, key, value, out = (nn.Linear(8, 8) for _ in range(4))
    tokens, scores = torch.randn(3, 10, 8), torch.randn(3, 9)
    found = focused_pool(tokens, scores, query, key, value, out, 2)
    expected = []
    for one, score in zip(tokens, scores, strict=True):
        bias, heads = torch.cat([torch.ones(1), score.sigmoid()]), []
        for part in (slice(0, 4), slice(4, 8)):
            logits = (key(one)[:, part] @ query(one[:1])[0, part]) / 2.0 + bias
            heads.append(logits.softmax(0) @ value(one)[:, part])
        expected.append(out(torch.cat(heads)))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    flat = focused_pool(tokens, torch.full((3, 9), 100.0), query, key, value, out, 2)  # the same bias for all: none
    keys = [layer(tokens) for layer in (key, value)]
    plain = F.scaled_dot_product_attention(
        *(t.view(3, -1, 2, 4).transpose(1, 2) for t in (query(tokens[:, :1]), *keys))
    )
    torch.testing.assert_close(flat, out(plain.transpose(1, 2).reshape(3, 8)), atol=1e-5, rtol=1e-5)


def test_a_bank_of_all_targets_is_a_classifier_and_gets_no_gradient():
    queries, bank = torch.randn(4, 6, requires_grad=True), torch.randn(9, 6, requires_grad=True)
    targets = torch.tensor([0, 3, 8, 3])
    loss = bank_loss(queries, bank, targets, 0.1)
    expected = F.cross_entropy(F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).t() / 0.1, targets)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert queries.grad is not None
    assert bank.grad is None
    some = bank_loss(queries, bank, targets, 0.1, negatives=5, generator=torch.Generator().manual_seed(0))
    assert 0 < float(some) < float(loss) + 1e-6
    with pytest.raises(DataError, match="between 0 and 9; the bank has 9"):
        bank_loss(queries, bank, torch.tensor([0, 9]))
    with pytest.raises(ConfigError, match="temperature = 0"):
        bank_loss(queries, bank, targets, 0)


def test_the_cosine_of_fused_features_is_the_mean_of_both():
    left, right = torch.randn(5, 7), torch.randn(5, 3)
    made = fused(left, right, 0.3)
    cosines = [F.normalize(one, dim=1) @ F.normalize(one, dim=1).t() for one in (left, right)]
    torch.testing.assert_close(made @ made.t(), 0.3 * cosines[0] + 0.7 * cosines[1])
    with pytest.raises(ConfigError, match="alpha = 2"):
        fused(left, right, 2)
    with pytest.raises(DataError, match="5 and 4 examples"):
        fused(left, right[:4])


def test_co_pca_of_full_width_turns_a_pair_and_swaps_with_it():
    first, second = torch.randn(9, 6), torch.randn(7, 6) * 3 + 1
    one, two = co_pca(first, second, 6)
    torch.testing.assert_close(torch.cdist(one, two), torch.cdist(first, second), atol=1e-4, rtol=1e-4)
    other = co_pca(second, first, 3)
    torch.testing.assert_close(other[1].abs(), co_pca(first, second, 3)[0].abs(), atol=1e-4, rtol=1e-4)
    both = torch.cat([first, second])
    exact = torch.linalg.svd(both - both.mean(0))[1][:3]
    torch.testing.assert_close(torch.cat(co_pca(first, second, 3)).norm(dim=0), exact, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="kept = 7"):
        co_pca(first, second, 7)
    with pytest.raises(DataError, match="widths 6 and 5"):
        co_pca(first, second[:, :5], 2)
