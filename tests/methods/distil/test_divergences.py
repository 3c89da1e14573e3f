"""Divergences, draws, clipping and phrases, each against its definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.errors import TaskError
from lessen.methods.distil._shared.clipping import Limits, clipped_divergence
from lessen.methods.distil._shared.divergences import divergence, sampled_cross_entropy
from lessen.methods.distil._shared.places import Places
from lessen.methods.distil._shared.spans import pairs, phrases, span_loss
from lessen.train.sampled import draws, packed, token_bytes, unpacked
from soft import kl, logits, softmax


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_each_divergence_is_its_definition(kind) -> None:
    own, wanted = logits()
    found = divergence(own, wanted, kind, beta=0.3)
    for row, (o, w) in enumerate(zip(own.tolist(), wanted.tolist(), strict=True)):
        q, p = softmax(o), softmax(w)
        m = [0.3 * a + 0.7 * b for a, b in zip(p, q, strict=True)]
        expected = {"forward": kl(p, q), "reverse": kl(q, p), "jsd": 0.3 * kl(p, m) + 0.7 * kl(q, m)}[kind]
        assert float(found[row]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert divergence(own, own, kind).abs().max() < 1e-6


def test_jsd_tends_to_both_divergences_at_its_ends() -> None:
    own, wanted = (values.double().float() for values in logits(seed=1))
    for beta, kind in ((1e-3, "forward"), (1 - 1e-3, "reverse")):
        scaled = divergence(own, wanted, "jsd", beta) / min(beta, 1 - beta)
        assert torch.allclose(scaled, divergence(own, wanted, kind), rtol=0.02)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_made_in_pieces_is_that_of_autograd(temperature, monkeypatch) -> None:
    from lessen.methods.distil._shared import divergences

    monkeypatch.setattr(divergences, "PIECE", 24)  # two rows at a time
    own, wanted = logits()
    left, right = own.clone().requires_grad_(), own.clone().requires_grad_()
    weights = torch.arange(1.0, 6.0)
    (divergence(left, wanted, "forward", temperature=temperature) * weights).sum().backward()
    logs = [F.log_softmax(x / temperature, dim=1) for x in (right, wanted)]
    plain = temperature**2 * F.kl_div(logs[0], logs[1], reduction="none", log_target=True).sum(dim=1)
    (plain * weights).sum().backward()
    assert torch.allclose(left.grad, right.grad, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "beta"), [("reverse", 0.5), ("jsd", 0.3), ("jsd", 0.9)])
def test_the_other_gradients_are_those_of_autograd(kind, beta) -> None:
    own, wanted = logits()
    left, right = own.clone().requires_grad_(), own.clone().double().requires_grad_()
    weights = torch.arange(1.0, 6.0)
    (divergence(left, wanted, kind, beta) * weights).sum().backward()
    q, p = right.softmax(dim=1), wanted.double().softmax(dim=1)
    m = beta * p + (1 - beta) * q
    parts = [beta * p * (p / m).log() + (1 - beta) * q * (q / m).log(), q * (q / p).log()]
    (parts[kind == "reverse"].sum(dim=1) * weights).sum().backward()
    assert torch.allclose(left.grad, right.grad.float(), atol=1e-5)  # type: ignore[arg-type, union-attr]


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(TaskError, match="the teacher's vocabulary has 7 tokens, the student's 5"):
        divergence(torch.zeros(2, 5), torch.zeros(2, 7), "reverse")


def test_draws_are_unbiased_in_closed_form() -> None:
    """The draws change where u passes a fraction of n times a cumulated probability: exact mean over those pieces."""
    count = 3
    scores = torch.tensor([[0.3, -1.0, 1.2, 0.0]])
    p = scores.double().softmax(dim=1)[0]
    edges = sorted({0.0, 1.0, *(float(c) * count % 1 for c in p.cumsum(0)[:-1])})
    student = torch.tensor([[0.5, 0.2, -0.4, 1.0]], requires_grad=True)
    mean, slope = torch.zeros(4, dtype=torch.float64), torch.zeros(1, 4)
    for low, high in itertools.pairwise(edges):
        ids = draws(scores, count, torch.tensor([(low + high) / 2], dtype=torch.float64))
        counts = torch.bincount(ids[0], minlength=4)
        assert bool(((counts - count * p).abs() < 1).all())
        mean += (high - low) * counts.double() / count
        loss = sampled_cross_entropy(student, ids, torch.full(ids.shape, 1 / count)).sum()
        slope += (high - low) * torch.autograd.grad(loss, student)[0]
    assert torch.allclose(mean, p, atol=1e-6)
    assert torch.allclose(slope, student.detach().softmax(dim=1) - p.float(), atol=1e-6)


def test_the_gradient_over_many_tokens_is_not_off() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 50, generator=generator) * 2
    tokens = 100_000
    uniform = torch.rand(tokens, dtype=torch.float64, generator=generator)
    ids = draws(scores.expand(tokens, -1), 12, uniform)
    counts = F.one_hot(ids, 50).sum(dim=1).double() / 12
    p = scores.double().softmax(dim=1)[0]
    z = (counts.mean(dim=0) - p) / (counts.std(dim=0) / math.sqrt(tokens)).clamp(min=1e-9)
    assert float(z.abs().max()) < 4
    top = scores.double().softmax(dim=1)[0].topk(12)  # what keeps the largest is off by far
    assert float(1 - top.values.sum()) > 0.01


def test_the_sampled_loss_and_its_gradient_are_those_of_autograd() -> None:
    own, _ = logits()
    ids = torch.randint(0, 12, (5, 4), generator=torch.Generator().manual_seed(1))
    ids[0] = 3  # repeats add up
    weights = torch.rand(5, 4)
    left, right = own.clone().requires_grad_(), own.clone().requires_grad_()
    sampled_cross_entropy(left, ids, weights).sum().backward()
    (-weights * F.log_softmax(right, dim=1).gather(1, ids)).sum().backward()
    assert torch.allclose(left.grad, right.grad, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("vocabulary", [2, 200, 257, 49152, 65536, 65537, 151_936, 262_144])
def test_draws_are_packed_without_loss_in_30_bytes(vocabulary) -> None:
    ids = torch.randint(0, vocabulary, (3, 5, 12), generator=torch.Generator().manual_seed(0)).sort(dim=-1).values
    ids[0, 0, -1] = vocabulary - 1
    stored = packed(ids, vocabulary)
    assert stored.dtype == torch.uint8
    assert stored.shape[-1] == token_bytes(12, vocabulary) <= 30
    assert torch.equal(unpacked(stored, 12, vocabulary), ids)


class Said(nn.Module):
    """Limits that are given."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(seen),), self.low), torch.full((len(seen),), self.high)


@pytest.mark.parametrize("top", [4, 12, 64])
def test_without_limits_the_clipped_divergence_is_forward_kl(top) -> None:
    own, wanted = logits()
    following = torch.zeros(5, dtype=torch.int64)
    plain = divergence(own, wanted, "forward")
    for clip, limits in (("none", None), ("learned", Said(0.0, 1.0))):
        found, kept = clipped_divergence(own, wanted, following, clip=clip, top=top, limits=limits)
        assert torch.allclose(found, plain, atol=2e-6)
        assert torch.allclose(kept, torch.ones(5), atol=1e-6)


@pytest.mark.parametrize(("top", "floor"), [(12, 0.0), (5, 0.0), (12, 0.9)])
def test_the_learned_limits_are_those_of_a_loop(top, floor) -> None:
    own, wanted = logits(seed=2)
    following = torch.tensor([0, 3, 11, 5, 7])
    low, high, kappa = 0.1, 0.6, 0.02
    found, kept = clipped_divergence(
        own, wanted, following, clip="learned", top=top, limits=Said(low, high), floor=floor, kappa=kappa
    )
    spread = [20 * kappa * (2 * side - 1) + side for side in (low, high)]
    for row in range(5):
        p, q = softmax(wanted[row].tolist()), softmax(own[row].tolist())
        order = sorted(range(12), key=lambda c: -p[c])
        mass, gates = 0.0, [0.0] * 12
        for c in order[:top]:
            gates[c], mass = mass + p[c] / 2, mass + p[c]
        for c in order[top:]:
            gates[c] = (1 + mass) / 2
        gates = [1 / (1 + math.exp((spread[0] - r) / kappa)) / (1 + math.exp((r - spread[1]) / kappa)) for r in gates]
        gates[int(following[row])] = 1.0
        held = sum(g * a for g, a in zip(gates, p, strict=True))
        if held < floor:
            gates = [g + (floor - held) / (1 - held) * (1 - g) for g in gates]
            held = floor
        left, right = ([g * a for g, a in zip(gates, x, strict=True)] for x in (p, q))
        expected = kl([a / sum(left) for a in left], [b / sum(right) for b in right])
        assert float(found[row]) == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert float(kept[row]) == pytest.approx(held, rel=1e-4)
        assert float(kept[row]) >= floor - 1e-6


def test_fixed_clipping_keeps_the_first_classes_of_a_mass() -> None:
    wanted = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    own = torch.log(torch.tensor([[0.25, 0.25, 0.25, 0.25]]))
    for mass, classes in ((0.75, [0, 1]), (0.9, [0, 1, 2])):
        found, kept = clipped_divergence(own, wanted, torch.tensor([0]), clip="fixed", top=4, mass=mass)
        p = [wanted[0, c].exp() for c in classes]
        expected = sum(float(a / sum(p)) * math.log(float(a / sum(p)) * len(classes)) for a in p)
        assert float(found) == pytest.approx(expected, rel=1e-5)
        assert float(kept) == pytest.approx(float(sum(p)), rel=1e-5)
    found, kept = clipped_divergence(own, wanted, torch.tensor([3]), clip="fixed", top=2, mass=0.75)
    assert float(kept) == pytest.approx(0.85, rel=1e-5)  # the reference token is always kept


def test_gradient_reaches_the_limits_and_the_student_but_not_the_teacher() -> None:
    own, wanted = (values.requires_grad_() for values in logits())
    limits = Limits(4)
    losses, _ = clipped_divergence(own, wanted, torch.zeros(5).long(), clip="learned", top=4, limits=limits, floor=0.0)
    losses.sum().backward()
    assert wanted.grad is None
    assert own.grad is not None
    assert float(own.grad.abs().sum()) > 0
    assert all(float(p.grad.abs().sum()) > 0 for p in limits.last.parameters())  # type: ignore[union-attr]


def test_the_order_of_the_vocabulary_does_not_matter() -> None:
    own, wanted = logits()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    following = torch.tensor([0, 3, 11, 5, 7])
    moved = torch.argsort(order)[following]
    for clip in ("learned", "fixed"):
        knobs = {"clip": clip, "top": 5, "limits": Said(0.1, 0.7), "floor": 0.5}
        one, _ = clipped_divergence(own, wanted, following, **knobs)  # type: ignore[arg-type]
        other, _ = clipped_divergence(own[:, order], wanted[:, order], moved, **knobs)  # type: ignore[arg-type]
        assert torch.allclose(one, other, atol=1e-5)


def test_phrases_end_at_marks_and_begin_with_small_words() -> None:
    text = "The small dog ran into the old house, barking loudly. Nobody's home"
    found = [text[start:end] for start, end in phrases(text)]
    assert found == ["The small dog ran", "into the old house", "barking loudly", "Nobody's home"]


def test_pairs_lie_inside_a_phrase_by_characters() -> None:
    parts = ["The", " sm", "all", " dog", ",", " in", " wat", "er"]
    seen = Places(torch.arange(8)[None], torch.tensor([[True] * 7 + [True]]))
    assert pairs(seen, parts.__getitem__)[0].tolist() == [True, True, True, False, False, True, True]
    seen = Places(torch.arange(8)[None], torch.tensor([[True, False] + [True] * 6]))
    assert pairs(seen, parts.__getitem__)[0].tolist() == [False, False, True, False, False, True, True]


def test_the_span_loss_is_the_distance_of_normalised_products() -> None:
    generator = torch.Generator().manual_seed(0)
    own, wanted = (torch.randn(1, 4, 6, generator=generator) for _ in range(2))
    together = torch.tensor([[True, False, True]])
    expected = 0.0
    for t in (0, 2):
        products = []
        for scores in (own, wanted):
            a, b = softmax(scores[0, t].tolist()), softmax(scores[0, t + 1].tolist())
            joint = [x * y for x, y in zip(a, b, strict=True)]
            products.append([x / sum(joint) for x in joint])
        expected += math.dist(*products) / 2
    assert float(span_loss(own, wanted, together)) == pytest.approx(expected, rel=1e-5)
    own.requires_grad_()
    zero = span_loss(own, own.detach(), together)
    zero.backward()
    assert float(zero.detach()) == 0
    assert bool(own.grad.isfinite().all())  # type: ignore[union-attr]
    assert float(span_loss(own, wanted, torch.zeros(1, 3, dtype=torch.bool)).detach()) == 0
