"""Chance of any metric: the closed form where there is one, answers dealt to other units where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lessen
from lessen.metrics import ACCURACY, AUC, CALIBRATION_RATIO, PERPLEXITY, MeanMetric, Outcomes, chance_of
from toy import ToyNet, ToyTask


class Signs(MeanMetric):
    """A metric of a user's own, without a closed form."""

    name = "signs-of-chance"

    def each(self, outcomes):
        return ((outcomes["score"] > 0) == (outcomes["target"] > 0)).astype(np.float64)


def drawn(signal: float) -> Outcomes:
    generator = np.random.default_rng(3)
    target = (generator.random(4000) < 0.3).astype(np.float32)
    return Outcomes({"score": signal * (target - 0.5) + generator.normal(size=4000) - 0.4, "target": target})


def test_dealt_answers_give_the_rate_of_agreement_by_accident():
    outcomes = drawn(3.0)
    above, positive = (outcomes["score"] > 0).mean(), outcomes["target"].mean()
    expected = above * positive + (1 - above) * (1 - positive)
    assert chance_of(Signs(), outcomes) == pytest.approx(expected, abs=0.01)
    assert Signs()(outcomes) > expected + 0.1


def test_closed_forms_come_first_and_order_free_metrics_have_none():
    assert chance_of(AUC, drawn(1.0)) == 0.5
    assert chance_of(CALIBRATION_RATIO, drawn(1.0)) is None
    assert chance_of(PERPLEXITY, Outcomes({"nll": np.ones(40), "tokens": np.ones(40)})) is None
    wide = Outcomes({"score": np.eye(3)[[0, 1, 2, 2]], "target": np.array([0, 1, 2, 2])})
    assert chance_of(ACCURACY, wide) == 0.5


def test_coin_flip_labels_give_no_verdict_with_a_metric_of_ones_own():
    """They read "within margin" once, where accuracy said "no better than chance"."""

    class Coin(ToyTask):
        metrics = {"signs": Signs()}

        def __init__(self):
            super().__init__(examples=4000)
            coins = np.random.default_rng(0).random(4000) < 0.5
            self.label = torch.from_numpy(coins.astype(np.float32))

    trade = lessen.compress(ToyNet(), Coin(), "emb-half", margin=0.05)
    assert trade.verdict == "not enough data to say"
    assert "no better than chance" in trade.judgement.reason
