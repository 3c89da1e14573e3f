"""What layers hold: closed forms of R2 and of variance shares, the order of complexity, and what cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.judges import planted
from lessen.judges import get_judge
from lessen.judges.layers import held_out_r2, nonnegative_factors, stages
from lessen.judges.reading import entering, head_of
from lessen.judges.representation import noise_share, probed, variance_share
from lessen.judges.suite import CannotAnswer

HALF = np.arange(4000) % 2 == 0


def test_r2_is_one_for_linear_maps_and_zero_for_noise_and_no_map_of_the_inputs_matters():
    g = np.random.default_rng(0)
    x = g.normal(size=(4000, 12))
    y = np.stack([x @ g.normal(size=12), g.normal(size=4000)], axis=1)
    found = held_out_r2(x, y, HALF)
    assert found[0] == pytest.approx(1.0, abs=1e-6)
    assert found[1] == pytest.approx(0.0, abs=0.02)
    turned = held_out_r2(x @ g.normal(size=(12, 12)), y, HALF)
    assert turned[0] == pytest.approx(1.0, abs=1e-4)


def test_information_under_a_fixed_variance_is_the_variance_that_is_explained():
    """The difference of the two Gaussian log losses with variance 1/2 equals Var(z) R2."""
    g = np.random.default_rng(1)
    x = g.normal(size=(4000, 3))
    z = x[:, 0] + 0.7 * g.normal(size=4000)
    z = (z - z.mean()) / z.std()
    design = np.concatenate([x, np.ones((4000, 1))], axis=1)
    left = z - design @ np.linalg.lstsq(design, z, rcond=None)[0]
    without, with_inputs = ((values**2).mean() + 0.5 * np.log(np.pi) for values in (z, left))
    assert without - with_inputs == pytest.approx(z.var() * (1 - left.var() / z.var()), abs=1e-6)


def test_complexity_grows_from_a_coordinate_to_a_product_of_three_to_noise():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 8, generator=g)
    layers, held = [x], x
    for width in (8, 64, 64, 64, 64):
        held = torch.relu(held @ torch.randn(width, 64, generator=g) / width**0.5 * 1.5)
        layers.append(held)
    z = (
        torch.stack(
            [
                x[:, 0],
                x.norm(dim=1),
                (x[:, 0] * x[:, 1]).sign(),
                (x[:, 0] * x[:, 1] * x[:, 2]).sign(),
                torch.randn(4000, generator=g),
            ],
            dim=1,
        )
        .double()
        .numpy()
    )
    told = [np.clip(held_out_r2(layer.double().numpy(), z, HALF), 0, 1) for layer in layers]
    complexity = 1 - np.mean(told, axis=0)
    assert complexity[0] < 0.3
    assert (np.diff(complexity) > 0).all()
    assert complexity[-1] > 0.98


def test_the_dictionary_is_nonnegative_near_and_always_the_same():
    g = np.random.default_rng(2)
    values = g.random((200, 5)) @ g.random((5, 20))
    codes, words = nonnegative_factors(values, 5, 400)
    assert codes.min() >= 0 <= words.min()
    assert np.linalg.norm(values - codes @ words) < 0.05 * np.linalg.norm(values)
    np.testing.assert_array_equal(codes, nonnegative_factors(values, 5, 400)[0])


def test_variance_shares_of_independent_features_are_their_squares():
    g = np.random.default_rng(3)
    bits = g.integers(0, 2, (4000, 3))
    ways = np.linalg.qr(g.normal(size=(10, 10)))[0][:3]
    scale = np.array([3.0, 1.0, 0.5])
    held = ((2 * bits - 1) * scale) @ ways
    shares = [variance_share(held, bits[:, at], HALF) for at in range(3)]
    np.testing.assert_allclose(shares, scale**2 / (scale**2).sum(), atol=0.02)
    turned = held @ np.linalg.qr(g.normal(size=(10, 10)))[0]
    assert variance_share(turned, bits[:, 0], HALF) == pytest.approx(shares[0])
    assert variance_share(held, g.integers(0, 2, 4000), HALF) < 0.01
    assert probed(held, bits[:, 2], HALF).all()
    assert noise_share(held, held) == 0.0


def test_a_cut_of_rank_erases_the_hard_feature_first():
    task, model = planted.two_features(0)
    for rank, gone in ((1, {"hard"}), (2, set())):
        judge = get_judge("representation", task=task)
        before = judge.outcomes(model)
        section = judge.compare(before, judge.outcomes(planted.rank_cut(model, task.splits["test"][0], rank)))
        assert {name for name in ("easy", "hard") if section.figures[name]["low"] > 0.1} == gone
        assert section.figures["easy"]["share"][0] > 50 * section.figures["hard"]["share"][0]


def test_complex_features_are_lost_more_where_blocks_are_gone():
    task, model = planted.deep(1)
    judge = get_judge("complexity", task=task)
    before = judge.outcomes(model)
    assert before["retained"].mean() > 0.75
    section = judge.compare(before, judge.outcomes(planted.without_blocks(model)))
    thirds = [section.figures[f"{word} third by complexity"]["loss"] for word in ("lowest", "highest")]
    assert thirds[1] > thirds[0]
    assert "importance is lost" in section.lines[0]


def test_the_layer_that_gives_the_scores_is_found_and_what_enters_it():
    task, model = planted.deep(2)
    assert head_of(model, task, "x") == "head"
    assert stages(model, "head") == ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"]
    call = next(task.batches("test"))
    held = entering(model, ["head"], [call], task.forward, "x")["head"]
    assert torch.equal(model.head(held), model(call[0]))
    assert stages(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), "2") == ["0", "2"]


@pytest.mark.parametrize("suite", ["complexity", "representation"])
def test_models_without_a_head_or_without_the_layer_are_refused(suite):
    task, model = planted.deep(3)
    judge = get_judge(suite, task=task)
    judge.outcomes(model)
    with pytest.raises(CannotAnswer, match="any more"):
        judge.outcomes(nn.Sequential(nn.Linear(8, 4)))
    summed = nn.Sequential(nn.Linear(8, 4), nn.Identity())
    summed.forward = lambda inputs: summed[0](inputs) + 1.0
    with pytest.raises(CannotAnswer, match="no single layer"):
        get_judge(suite, task=task).outcomes(summed)


def test_features_that_nobody_knows_are_refused():
    task, model = planted.two_features(1)
    with pytest.raises(CannotAnswer, match="knows easy, hard"):
        get_judge({"name": "representation", "features": ["colour"]}, task=task).outcomes(model)
