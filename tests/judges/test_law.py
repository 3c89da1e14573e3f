"""The law of random features: limits, monotone errors, the sheet's figures; and what the suite says of a cut."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.judges import planted
from lessen.errors import ConfigError
from lessen.judges import get_judge
from lessen.judges.law import kernel_error, of_samples, predicted_error, solve
from lessen.judges.suite import CannotAnswer
from lessen.tasks import get_task

EIGENVALUES = np.arange(1, 501.0) ** -1.5
POWERS = np.arange(1, 501.0) ** -1.6
GRID = np.logspace(-2.5, 0.5, 7)


def test_many_features_are_the_kernel_and_a_large_ridge_gives_the_variance():
    for ridge in (0.01, 0.3):
        many = predicted_error(64, 1e9, ridge, EIGENVALUES, POWERS)
        assert many == pytest.approx(kernel_error(64, ridge, EIGENVALUES, POWERS), abs=1e-6)
    assert predicted_error(64, 128, 1e9, EIGENVALUES, POWERS, 0.5) == pytest.approx(POWERS.sum() + 0.5, abs=1e-3)


def test_with_the_ridge_tuned_more_width_never_hurts_and_scale_does_not_matter():
    errors = [min(predicted_error(64, k, ridge, EIGENVALUES, POWERS) for ridge in GRID) for k in (16, 64, 256, 1024)]
    assert (np.diff(errors) < 0).all()
    np.testing.assert_allclose(errors, [0.7066, 0.3922, 0.2620, 0.2206], atol=0.01)  # the sheet's
    one = predicted_error(64, 128, 0.1, EIGENVALUES, POWERS)
    assert predicted_error(64, 128, 0.7, 7 * EIGENVALUES, POWERS) == pytest.approx(one)


def test_the_law_is_what_an_experiment_finds():
    """The sheet's own check: 2,000 eigenvalues, 64 examples, 256 features, ridge 0.01 gives 0.328."""
    values, powers = np.arange(1, 2001.0) ** -1.5, np.arange(1, 2001.0) ** -1.6
    assert predicted_error(64, 256, 0.01, values, powers) == pytest.approx(0.328, abs=0.002)
    assert predicted_error(64, 64, 0.1, values, powers) == pytest.approx(0.526, abs=0.002)
    kappa, gamma = solve(64, 256, 0.01, values)
    seen = values / (values + gamma)
    assert seen.sum() + 0.01 / kappa == pytest.approx(64)
    assert seen.sum() + 256 * kappa / gamma == pytest.approx(256)


def test_eigenvalues_and_coefficients_come_out_of_samples():
    g = np.random.default_rng(0)
    scale = np.array([2.0, 1.0, 0.5])
    x = g.normal(size=(20_000, 3)) * scale
    y = x[:, :1] / 2.0 + 0.3 * g.normal(size=(20_000, 1))
    values, powers, noise = of_samples(x, y)
    np.testing.assert_allclose(values, scale**2, rtol=0.05)
    np.testing.assert_allclose(powers, [1.0, 0.0, 0.0], atol=0.03)
    assert noise == pytest.approx(0.09, rel=0.05)


def test_a_cut_costs_a_linear_head_and_the_same_model_does_not():
    task, model = planted.deep(0)
    judge = get_judge({"name": "width", "examples": 800}, task=task)
    section = judge.compare(judge.outcomes(model), judge.outcomes(model))
    assert section.figures["before"] == section.figures["after"]
    assert not section.caught
    with pytest.raises(CannotAnswer, match="one row of scores"):
        get_judge("width", task=(task := get_task("language-tiny"))).outcomes(task.build().eval())
    with pytest.raises(ConfigError, match="examples"):
        get_judge({"name": "width", "examples": 3}, task=task)
