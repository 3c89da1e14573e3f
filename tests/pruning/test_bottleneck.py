"""Masks by their closed forms: the divergence, the sign of log alpha, soft counts, the Lagrangian, folded means."""

from __future__ import annotations

import math

import pytest
import torch

from lessen.pruning.bottleneck import Bottleneck, Budget
from lessen.pruning.choice import Choice
from lessen.pruning.costs import read_costs
from lessen.pruning.layout import read_layout
from lessen.pruning.slicing import carry_out
from lessen.pruning.trained_masks import Masks
from lessen.tasks.vision.vit import PlainViT


def bottleneck(mu, log_variance) -> Bottleneck:
    made = Bottleneck(len(mu), torch.Generator().manual_seed(0), factor=0.5)
    with torch.no_grad():
        made.moved[0] = (torch.tensor(mu) - made.start[0]) / 0.5
        made.moved[1] = (torch.tensor(log_variance) - made.start[1]) / 0.5
    return made


def test_the_divergence_is_that_from_the_best_prior_of_mean_zero():
    mu, variance = 0.7, 0.3
    generator = torch.Generator().manual_seed(0)
    drawn = mu + math.sqrt(variance) * torch.randn(200_000, generator=generator, dtype=torch.float64)
    posterior = torch.distributions.Normal(torch.tensor(mu, dtype=torch.float64), math.sqrt(variance))
    prior = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), math.sqrt(mu**2 + variance))
    sampled = float((posterior.log_prob(drawn) - prior.log_prob(drawn)).mean())
    assert float(bottleneck([mu], [math.log(variance)]).divergence()) == pytest.approx(sampled, abs=5e-3)
    assert float(bottleneck([0.0], [-3.0]).divergence()) == 0.0
    assert bottleneck([1.0], [-3.0]).divergence() > bottleneck([0.5], [-3.0]).divergence()
    assert bottleneck([1.0], [-3.0]).divergence() > bottleneck([1.0], [-1.0]).divergence()


def test_what_is_larger_than_its_noise_is_kept():
    made = bottleneck([1.0, 1.0, -0.8, 0.1], [-2.0, 0.5, -1.0, -1.0])
    assert made.log_alpha()[0] < 0 < made.log_alpha()[1]
    assert torch.allclose(made.hard(), torch.tensor([1.0, 0.0, -0.8, 0.0]), atol=1e-6)
    sharp = made.kept(1000.0)
    assert float(sharp) == pytest.approx(2.0, abs=1e-3)


def test_draws_have_the_mean_and_the_variance():
    made = bottleneck([0.5, -1.0], [-2.0, 0.0])
    torch.manual_seed(0)
    drawn = made.draw(torch.zeros(20_000, 2))
    assert torch.allclose(drawn.mean(0), made.mu, atol=0.03)
    assert torch.allclose(drawn.var(0), made.log_variance.exp(), rtol=0.05)


def test_multipliers_push_while_too_little_is_masked_and_the_target_ramps():
    budget = Budget(0.5, 10)
    assert budget(torch.tensor(0.0), 0).item() == 0.0  # the first target is where it starts
    assert budget.target(5) == pytest.approx(0.25)
    assert budget.target(99) == 0.5
    optimiser = torch.optim.SGD(budget.parameters(), lr=1.0)
    sparsity = torch.tensor(0.1, requires_grad=True)
    for _ in range(3):
        optimiser.zero_grad()
        budget(sparsity, 10).backward()
        optimiser.step()
    assert budget.multipliers[0] < 0 < budget.multipliers[1]  # both raise the loss of what is below the target
    sparsity.grad = None
    budget(sparsity, 10).backward()
    assert sparsity.grad < 0


def test_soft_counts_of_sure_masks_are_what_the_export_holds_and_folded_means_are_exact():
    torch.manual_seed(0)
    model = PlainViT(image_size=8, patch_size=4, width=16, depth=2, heads=4, classes=3, stem=()).eval()
    pictures = torch.randn(4, 3, 8, 8)
    layout = read_layout(model)
    costs = read_costs(layout, lambda: model(pictures), 4)
    masks = Masks(layout, torch.Generator().manual_seed(0), 1.0, -9.0)
    with torch.no_grad():
        for one in (*masks.heads.values(), *masks.units.values()):
            one.moved[0] = 0.3 * torch.randn(len(one.mu))
            one.moved[1, ::3] = 12.0
    handles = masks.attach()
    with torch.no_grad():
        expected = model(pictures)
    for handle in handles:
        handle.remove()
    soft = float(costs.soft("parameters", masks.counts(Choice())))
    choice = Choice(
        {path: one.log_alpha() < 0 for path, one in masks.heads.items()},
        {path: one.log_alpha() < 0 for path, one in masks.units.items()},
    )
    masks.fold()
    sliced = carry_out(layout, choice, {})
    assert sum(p.numel() for p in sliced.parameters()) == pytest.approx(soft, rel=1e-4)
    with torch.no_grad():
        assert torch.allclose(sliced(pictures), expected, atol=1e-5)
