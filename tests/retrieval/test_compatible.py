"""Compatible features: corners in closed form, the loss against numpy, and a version that finds the old gallery."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lessen.errors import ConfigError, TaskError
from lessen.methods.retrieval.stationary_compat import StationaryCompat, features_of, with_simplex
from lessen.recipe import Recipe
from lessen.retrieval.compatible import compatibility, cross_accuracy, higher_order_loss
from lessen.stored.linears.simplex_head import SimplexHead, simplex
from lessen.tasks.vision.shapes import ShapesOptions, ShapesTask


@pytest.mark.parametrize("classes", [2, 3, 10, 64])
def test_corners_are_as_far_apart_as_can_be(classes):
    corners = simplex(classes)
    products = corners @ corners.t()
    expected = torch.full_like(products, -1 / (classes - 1)).fill_diagonal_(1.0)
    torch.testing.assert_close(products, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(corners.sum(0), torch.zeros(classes - 1, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("outputs", "classes"), [(2, 2), (4, 16), (10, 64)])
def test_logits_are_products_with_corners_filled_from_the_end(outputs, classes):
    head = SimplexHead(6, outputs, classes)
    nn.init.normal_(head.project)
    inputs = torch.randn(3, 5, 6)
    corners = simplex(classes).float()
    expected = torch.stack([head.embed(inputs) @ corners[classes - 1 - c] for c in range(outputs)], -1)
    torch.testing.assert_close(head(inputs), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inputs @ head.dequantise().t(), expected, atol=1e-5, rtol=1e-5)
    assert [name for name, _ in head.named_parameters()] == ["project"]


def test_more_classes_later_keep_the_corners_of_the_first():
    few, many = SimplexHead(6, 3, 16), SimplexHead(6, 9, 16)
    features = torch.randn(4, 15)
    assert torch.equal(many.logits(features)[:, :3], few.logits(features))


def test_the_loss_is_that_of_ten_lines_of_numpy():
    new, old, labels = torch.randn(7, 5), torch.randn(7, 5), torch.tensor([0, 1, 1, 2, 0, 3, 3])
    f, g = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (new, old))
    a = 10 * g @ f.T
    terms = [-a[n, n] + np.log(sum(np.exp(a[n, m]) for m in range(7) if labels[m] != labels[n])) for n in range(7)]
    assert float(higher_order_loss(new, old, labels)) == pytest.approx(np.mean(terms), rel=1e-4)
    assert float(higher_order_loss(new, old, torch.zeros(7))) == 0.0
    assert float(higher_order_loss(old, old, labels)) < float(higher_order_loss(new, old, labels))


def test_compatibility_counts_a_draw_as_a_failure():
    assert compatibility([[0.5], [0.5, 0.6]])["compatibility"] == 0.0
    assert compatibility([[0.5], [0.6, 0.6], [0.55, 0.7, 0.9]])["compatibility"] == 1.0
    assert compatibility([[0.5], [0.7, 0.9]])["accuracy"] == pytest.approx(0.7)


def test_templates_of_one_model_are_found_by_features_of_another():
    axes = torch.eye(3)
    gallery, labels = axes.repeat(4, 1), torch.arange(3).repeat(4)
    assert cross_accuracy(5 * axes, torch.arange(3), gallery, labels).all()
    assert not cross_accuracy(-axes, torch.arange(3), gallery, labels).any()


def test_a_new_version_on_a_model_that_is_not_ours_finds_the_old_gallery():
    task = ShapesTask(ShapesOptions(examples=640))

    class Plain(nn.Module):
        def __init__(self, width):
            super().__init__()
            layers = [nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten()]
            self.body = nn.Sequential(*layers, nn.Linear(256, width), nn.ReLU())
            self.top = nn.Linear(width, 4)

        def forward(self, pictures):
            return self.top(self.body(pictures))

    versions = []
    for seed, width in ((0, 32), (1, 48)):  # the second was made elsewhere, with a body of its own
        torch.manual_seed(seed)
        step = StationaryCompat(classes=8, epochs=8)
        versions.append(Recipe([step]).apply(Plain(width), task, seed=seed)[0].eval())
    inputs = torch.cat([x for x, _ in task.batches("test")])
    labels = torch.cat([y for _, y in task.batches("test")])
    with torch.no_grad():
        old, new = (features_of(one, task, (inputs, labels)) for one in versions)
    crossed, own = (cross_accuracy(new, labels, gallery, labels).mean() for gallery in (old, new))
    assert crossed > max(0.4, 0.8 * own)  # chance is a quarter
    again = Recipe([StationaryCompat(classes=8, epochs=1)]).apply(versions[0], task)[0]
    assert sum(isinstance(one, SimplexHead) for one in again.modules()) == 1
    with pytest.raises(ConfigError, match="the model has 8 corners"):
        Recipe([StationaryCompat(classes=16)]).apply(versions[0], task)
    with pytest.raises(ConfigError, match="4 classes, more than the 3 corners"):
        with_simplex(Plain(8), task, 3, 0)
    with pytest.raises(TaskError, match="no linear layer"):
        with_simplex(nn.Sequential(nn.Conv2d(1, 4, 16), nn.Flatten()), task, 8, 0)
