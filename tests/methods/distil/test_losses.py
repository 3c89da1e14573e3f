"""Each loss against a reference written out with loops, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.methods.distil._shared.features import Regressor, matched, penultimate, vectors
from lessen.methods.distil._shared.losses import (
    angle_loss,
    check_answers,
    class_rows,
    decoupled_divergence,
    distance_loss,
    single_divergence,
    soft_divergence,
)
from lessen.methods.distil.crd import Critic


def logits(rows: int = 7, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    own, wanted = (3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return own, wanted, torch.randint(0, classes, (rows,), generator=generator)


def softmax(row: list[float], temperature: float) -> list[float]:
    exps = [math.exp(value / temperature) for value in row]
    return [value / sum(exps) for value in exps]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_soft_divergence_is_that_of_the_probabilities(temperature: float) -> None:
    own, wanted, _ = logits()
    pairs = zip(own.tolist(), wanted.tolist(), strict=True)
    expected = [divergence(softmax(w, temperature), softmax(o, temperature)) for o, w in pairs]
    found = float(soft_divergence(own, wanted, temperature))
    assert found == pytest.approx(temperature**2 * sum(expected) / len(expected), rel=1e-5)
    assert float(soft_divergence(wanted, wanted, temperature)) == pytest.approx(0, abs=1e-6)


def test_at_temperature_one_it_is_cross_entropy_with_soft_labels_but_for_a_constant() -> None:
    own, wanted, _ = logits()
    own.requires_grad_()
    (one,) = torch.autograd.grad(soft_divergence(own, wanted, 1.0), own)
    (other,) = torch.autograd.grad(F.cross_entropy(own, wanted.softmax(1)), own)
    assert torch.allclose(one, other, atol=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_parts_are_those_of_the_definition_and_add_up_to_the_whole(temperature: float) -> None:
    own, wanted, target = logits()
    first, second, whole = [], [], []
    for o, w, t in zip(own.tolist(), wanted.tolist(), target.tolist(), strict=True):
        p, q = softmax(w, temperature), softmax(o, temperature)
        first.append(divergence([p[t], 1 - p[t]], [q[t], 1 - q[t]]))
        others = [[value / (1 - x[t]) for c, value in enumerate(x) if c != t] for x in (p, q)]
        second.append(divergence(*others))
        whole.append(first[-1] + (1 - p[t]) * second[-1])
    found = decoupled_divergence(own, wanted, target, temperature)
    assert float(found[0]) == pytest.approx(temperature**2 * sum(first) / 7, rel=1e-4)
    assert float(found[1]) == pytest.approx(temperature**2 * sum(second) / 7, rel=1e-4)
    assert float(soft_divergence(own, wanted, temperature)) == pytest.approx(temperature**2 * sum(whole) / 7, rel=1e-4)


def test_with_two_classes_the_first_part_is_everything() -> None:
    own, wanted, target = logits(classes=2)
    own.requires_grad_()
    first, second = decoupled_divergence(own, wanted, target, 2.0)
    assert float(first.detach()) == pytest.approx(float(soft_divergence(own, wanted, 2.0).detach()), rel=1e-5)
    assert float(second.detach()) == 0
    (gradient,) = torch.autograd.grad(first + second, own)
    assert bool(gradient.isfinite().all())


def test_one_logit_is_two_classes() -> None:
    own, wanted, _ = logits(classes=1)
    left, right = own[:, 0].clone().requires_grad_(), own[:, 0].clone().requires_grad_()
    one = single_divergence(left, wanted[:, 0], 3.0)
    other = soft_divergence(class_rows(right, None), class_rows(wanted[:, 0], None), 3.0)
    assert float(one.detach()) == pytest.approx(float(other.detach()), rel=1e-5)
    slopes = [torch.autograd.grad(loss, x)[0] for loss, x in ((one, left), (other, right))]
    assert torch.allclose(*slopes, atol=1e-7)
    assert float(single_divergence(wanted[:, 0], wanted[:, 0], 3.0)) == pytest.approx(0, abs=1e-6)


def huber(a: float, b: float) -> float:
    gap = abs(a - b)
    return 0.5 * gap * gap if gap < 1 else gap - 0.5


def test_relations_are_those_of_pairs_and_triples() -> None:
    generator = torch.Generator().manual_seed(0)
    own, wanted = torch.randn(5, 3, generator=generator), torch.randn(5, 6, generator=generator)
    tables = []
    for features in (own, wanted):
        rows = features.tolist()
        table = [[math.dist(a, b) for b in rows] for a in rows]
        mean = sum(map(sum, table)) / 20
        tables.append([[value / mean for value in line] for line in table])
    expected = sum(huber(a, b) for x, y in zip(*tables, strict=True) for a, b in zip(x, y, strict=True)) / 25
    assert float(distance_loss(own, wanted)) == pytest.approx(expected, rel=1e-4)

    def cosine(features: Tensor, i: int, j: int, k: int) -> float:
        return float(F.normalize(features[j] - features[i], dim=0) @ F.normalize(features[k] - features[i], dim=0))

    triples = [(i, j, k) for i in range(5) for j in range(5) for k in range(5)]
    expected = sum(huber(cosine(own, *t), cosine(wanted, *t)) for t in triples) / 125
    assert float(angle_loss(own, wanted)) == pytest.approx(expected, rel=1e-4)
    turned = wanted @ torch.linalg.qr(torch.randn(6, 6, generator=generator))[0] * 7 + 3
    assert float(distance_loss(turned, wanted)) == pytest.approx(0, abs=1e-6)
    assert float(angle_loss(turned, wanted)) == pytest.approx(0, abs=1e-6)


def test_equal_rows_give_finite_gradients() -> None:
    same = torch.ones(4, 3, requires_grad=True)
    (distance_loss(same, torch.randn(4, 3)) + angle_loss(same, torch.randn(4, 3))).backward()
    assert bool(same.grad.isfinite().all())  # type: ignore[union-attr]


def test_the_contrast_is_that_of_the_definition() -> None:
    torch.manual_seed(0)
    critic = Critic(5, 6, width=4, negatives=3, temperature=0.5).double()
    critic.queues = critic.queues.double()
    critic.constants = critic.constants.double()
    own, wanted = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    queues = critic.queues.clone()
    left = F.normalize(critic.student(own), dim=1).detach()
    right = F.normalize(critic.teacher(wanted), dim=1).detach()
    expected = 0.0
    for anchors, positives, queue in ((left, right, queues[1]), (right, left, queues[0])):
        e_together = [math.exp(float(a @ p) / 0.5) for a, p in zip(anchors, positives, strict=True)]
        e_apart = [[math.exp(float(a @ n) / 0.5) for n in queue] for a in anchors]
        constant = sum(e + sum(line) for e, line in zip(e_together, e_apart, strict=True)) / 8
        for e, line in zip(e_together, e_apart, strict=True):
            expected -= math.log(e / (e + 3 * constant)) / 2
            expected -= sum(math.log(3 * constant / (n + 3 * constant)) for n in line) / 2
    assert float(critic(own, wanted).detach()) == pytest.approx(expected, rel=1e-5)
    # the queue now holds these two examples, and the third place what it held
    assert torch.allclose(critic.queues[0, :2], left)
    assert torch.allclose(critic.queues[1, :2], right)
    assert torch.equal(critic.queues[:, 2], queues[:, 2])
    before = critic.constants.clone()
    critic(own, wanted)
    assert torch.equal(critic.constants, before)
    assert int(critic.place) == 1
    assert torch.allclose(critic.queues[0, [2, 0]], left)


def test_answers_become_rows_of_classes() -> None:
    x = torch.tensor([0.5, -2.0])
    rows = class_rows(x, None)
    assert rows.tolist() == [[0, 0.5], [0, -2.0]]
    assert torch.equal(class_rows(x[:, None], None), rows)
    assert torch.allclose(rows.softmax(1)[:, 1], torch.sigmoid(x))
    tokens = torch.arange(24.0).view(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert class_rows(tokens, {"input_ids": mask}).shape == (6, 4)
    assert torch.equal(class_rows(tokens, ({"attention_mask": mask}, None)), tokens.view(6, 4)[[0, 1, 3]])
    with pytest.raises(TaskError, match=r"the teacher answers with shape \(2, 5\), the student with \(2, 4\)"):
        check_answers(torch.zeros(2, 4), torch.zeros(2, 5))


def test_features_are_brought_into_the_form_they_share() -> None:
    wide, small = torch.randn(2, 5, 8, 8), torch.randn(2, 3, 4, 4)
    own, wanted = matched(wide, small)
    assert torch.allclose(own, wide.view(2, 5, 4, 2, 4, 2).mean(dim=(3, 5)))
    assert wanted.shape == (2, 3, 4, 4)
    assert Regressor(own, wanted)(own).shape == (2, 3, 4, 4)
    tokens = torch.randn(2, 16, 6)
    assert matched(tokens, torch.randn(2, 16, 9))[0] is tokens
    own, wanted = matched(wide, tokens)
    assert torch.allclose(own, wide.mean(dim=(2, 3)))
    assert torch.allclose(wanted, tokens.mean(dim=1))
    assert torch.equal(vectors(own), own)
    assert Regressor(own, wanted)(own).shape == (2, 6)


def test_the_layer_before_the_head_is_the_input_of_the_last_linear_that_runs() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.body = nn.Linear(3, 4)
            self.unused = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    assert penultimate(Odd(), lambda m, b: m(b), torch.zeros(1, 3)) == "head:input"
    with pytest.raises(TaskError, match="Tanh runs no linear layer"):
        penultimate(nn.Tanh(), lambda m, b: m(b), torch.zeros(1, 3))
