"""Language students: divergences, places, writing, draws, clipping and phrases, each against its definition."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessen.artifact import folder as artifact
from lessen.errors import ArtifactError, ConfigError, InputError, NonFiniteError, NothingMatchedError, TaskError
from lessen.method import Context
from lessen.methods.distil._shared.clipping import Limits, clipped_divergence
from lessen.methods.distil._shared.divergences import divergence, sampled_cross_entropy
from lessen.methods.distil._shared.places import Places, places, written
from lessen.methods.distil._shared.spans import pairs, phrases, span_loss
from lessen.methods.distil._shared.writing import Memory, Writer, worst
from lessen.methods.distil.gkd import GKD
from lessen.methods.distil.layer_cut import LayerCut, chosen
from lessen.methods.distil.random_sampling_kd import RandomSamplingKD
from lessen.methods.distil.semantic_revision import SemanticRevision
from lessen.methods.distil.sequence_kd import SequenceKD
from lessen.metrics import ACCURACY
from lessen.recipe import Recipe
from lessen.stored.linears.low_rank_delta import LowRankDelta
from lessen.task import Task
from lessen.train.sampled import draws, packed, token_bytes, unpacked
from lessen.train.settings import FitSettings
from lessen.train.teachers import Teacher
from tiny_models import gpt2, llama

METHODS = [GKD, SequenceKD, SemanticRevision, RandomSamplingKD]


def softmax(row: list[float]) -> list[float]:
    exps = [math.exp(value) for value in row]
    return [value / sum(exps) for value in exps]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def logits(rows: int = 5, classes: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(rows, classes, generator=generator) for _ in range(2))  # type: ignore[return-value]


# -- divergences ---------------------------------------------------------------------------------------------------
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


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(TaskError, match="the teacher's vocabulary has 7 tokens, the student's 5"):
        divergence(torch.zeros(2, 5), torch.zeros(2, 7), "reverse")


# -- draws ---------------------------------------------------------------------------------------------------------
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


# -- places --------------------------------------------------------------------------------------------------------
class Words(Task):
    """Rows of tokens in which the next is the last plus 1 or 2; the end of some rows is padding."""

    name = "words"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=3, learning_rate=1e-2, schedule="cosine", patience=None, keep="last")

    def __init__(self, layers: int = 1, vocabulary: int = 24) -> None:
        self.layers, self.vocabulary = layers, vocabulary

    def build(self) -> nn.Module:
        return llama(self.vocabulary, seed=int(torch.randint(10**6, ())), hidden_size=16, intermediate_size=24, num_hidden_layers=self.layers,
                     num_attention_heads=2, num_key_value_heads=1)  # fmt: skip

    def batches(self, split, seed=0):
        generator = torch.Generator().manual_seed(len(split) * 7 + seed)
        for _ in range(4):
            ids = 2 + torch.randint(1, 3, (6, 10), generator=generator).cumsum(dim=1) % (self.vocabulary - 2)
            mask = torch.ones_like(ids)
            mask[::2, 8:] = 0
            labels = ids.masked_fill(mask == 0, -100)
            labels[:, :3] = -100
            yield {"input_ids": ids, "attention_mask": mask}, labels

    def loss(self, model, batch) -> Tensor:
        found = self.forward(model, batch)
        return F.cross_entropy(found[:, :-1].flatten(0, 1), batch[1][:, 1:].flatten(), ignore_index=-100)

    def outcomes(self, model, split="test"):
        from lessen.metrics import Outcomes

        rows = [(self.forward(model, b)[:, 5].detach().numpy(), b[0]["input_ids"][:, 6].numpy())
                for b in self.batches(split)]  # fmt: skip
        score, target = (np.concatenate(part) for part in zip(*rows, strict=True))
        return Outcomes({"score": score, "target": target})


def test_the_judged_places_are_those_of_the_labels() -> None:
    task = Words()
    batch = next(iter(task.batches("train")))
    seen = places(task, batch)
    # labels 3 ... 9 are judged at places 2 ... 8; every second row ends at token 7
    assert seen.judged.sum(dim=1).tolist() == [5, 7, 5, 7, 5, 7]
    for row, place in torch.nonzero(seen.judged).tolist():
        assert int(seen.following[row, place]) == int(batch[0]["input_ids"][row, place + 1])
    shifted = task.view(target=lambda b: torch.cat([b[1][:, 1:], torch.full_like(b[1][:, :1], -100)], dim=1))
    again = places(shifted, batch)
    assert torch.equal(again.judged, seen.judged)
    assert torch.equal(again.following[again.judged], seen.following[seen.judged])
    bare = task.view(target=lambda b: b[1][:, 0])  # no labels of the tokens' shape: what the mask lets through
    assert places(bare, batch).judged.sum(dim=1).tolist() == [7, 9, 7, 9, 7, 9]
    nothing = (batch[0], torch.full_like(batch[1], -100))
    with pytest.raises(TaskError, match="gives a batch in which no token is judged"):
        places(task, nothing)
    with pytest.raises(TaskError, match="does not give sequences of tokens"):
        places(task.view(inputs=lambda b: torch.zeros(2, 3)), batch)


def test_padding_and_prompts_do_not_reach_the_loss() -> None:
    task = Words()
    seen = places(task, next(iter(task.batches("train"))))
    generator = torch.Generator().manual_seed(0)
    own, wanted = (torch.randn(6, 10, 24, generator=generator) for _ in range(2))
    one = divergence(seen.rows(own), seen.rows(wanted), "forward").mean()
    own[~seen.judged] += 100 * torch.randn(24)
    assert float(divergence(seen.rows(own), seen.rows(wanted), "forward").mean()) == float(one)


# -- writing -------------------------------------------------------------------------------------------------------
def test_a_written_row_keeps_its_prompt_and_ends_at_the_end() -> None:
    task = Words()
    torch.manual_seed(0)
    model = task.build()
    batch = next(iter(task.batches("train")))
    writer = Writer(task, None, 0.0, torch.Generator().manual_seed(0))
    assert writer.start(batch) == 3
    made, seen = writer.write(model, batch)
    ids = made[0]["input_ids"]
    assert torch.equal(ids[:, :3], batch[0]["input_ids"][:, :3])
    assert not torch.equal(ids, batch[0]["input_ids"])
    with torch.no_grad():  # with keys and values kept, each word is the likeliest after the ones before it
        whole = model(input_ids=ids).logits.argmax(dim=2)
    for row, place in torch.nonzero(seen.judged).tolist():
        assert int(whole[row, place]) == int(ids[row, place + 1])
    ended = ids == 1
    for row in range(len(ids)):
        known = made[0]["attention_mask"][row].bool()
        assert int((ended[row] & known)[3:].sum()) <= 1
        judged = made[1][row] != -100
        assert torch.equal(judged[1:], seen.judged[row, :-1])
        assert torch.equal(made[1][row][judged], ids[row][judged])
    assert model.training is False
    left = ({**batch[0], "attention_mask": batch[0]["attention_mask"].flip(1)}, batch[1])
    with pytest.raises(TaskError, match="padded on the left"):
        writer.start(left)
    with pytest.raises(TaskError, match="leaves nothing to write"):
        Writer(task.view(inputs=lambda b: b[0]["input_ids"]), 10, 0.0, torch.Generator()).start(batch)


def test_a_plain_model_writes_what_one_with_states_writes() -> None:
    task = Words()
    model = task.build()
    batch = next(iter(task.batches("train")))

    class Bare(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: Tensor) -> Tensor:
            return self.inner(input_ids=ids).logits

    one, _ = Writer(task, 4, 0.7, torch.Generator().manual_seed(3)).write(model, batch)
    other, _ = Writer(task, 4, 0.7, torch.Generator().manual_seed(3)).write(Bare(model), batch)
    assert float((one[0]["input_ids"][:, :9] == other[0]["input_ids"][:, :9]).float().mean()) > 0.8


def test_the_worst_word_is_put_right_and_the_rest_written_anew() -> None:
    task = Words()
    torch.manual_seed(1)
    student, teacher = task.build(), task.build()
    batch = next(iter(task.batches("train")))
    writer = Writer(task, 3, 0.0, torch.Generator().manual_seed(0))
    made, seen = writer.write(student, batch)
    with torch.no_grad():
        own, wanted = (task.forward(model, made) for model in (student, teacher))
    fixed, after, where = writer.corrected(student, made, seen, own, wanted)
    old, new = made[0]["input_ids"], fixed[0]["input_ids"]
    assert bool((where > 0).any())
    for row, place in enumerate(where.tolist()):
        if place < 0:
            assert torch.equal(old[row], new[row])
            continue
        gaps = [
            (kl(softmax(wanted[row, t].tolist()), softmax(own[row, t].tolist())), t)
            for t in range(10) if bool(seen.judged[row, t]) and int(wanted[row, t].argmax()) != int(old[row, t + 1])
        ]  # fmt: skip
        assert max(gaps)[1] == place - 1
        assert torch.equal(old[row, :place], new[row, :place])
        assert int(new[row, place]) == int(wanted[row, place - 1].argmax()) != int(old[row, place])
        ends = (new[row, 3:] == 1).nonzero()
        last = 3 + int(ends[0]) if len(ends) else 9
        assert after.judged[row].nonzero()[:, 0].tolist() == list(range(2, last))
    same, _, none = writer.corrected(student, made, seen, wanted, F.one_hot(torch.roll(old, -1, 1), 24).float() * 9)
    assert none.tolist() == [-1] * 6
    assert torch.equal(same[0]["input_ids"], old)


def test_the_worst_of_two_classes_by_hand() -> None:
    seen = Places(torch.tensor([[0, 0, 1]]), torch.tensor([[True, True, True]]))
    teacher = torch.tensor([[[0.0, 2.0], [0.0, 1.0], [0.0, 5.0]]])  # says 1, 1, 1: places 0 and 1 differ
    student = torch.zeros(1, 3, 2)
    gaps = [kl(softmax(row), [0.5, 0.5]) for row in teacher[0].tolist()]
    assert gaps[2] > gaps[0] > gaps[1]
    assert worst(seen, student, teacher).tolist() == [0]


def test_the_memory_gives_back_what_it_was_given() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = Places(torch.zeros(1, 1), torch.ones(1, 1))
    memory = Memory(2, 0.5, generator)
    assert memory.recall() is None
    for number in range(3):
        memory.keep(number, seen)
    assert [batch for batch, _ in memory.kept] == [1, 2]
    found = [memory.recall() for _ in range(200)]
    assert 60 < sum(one is None for one in found) < 140
    assert {one[0] for one in found if one is not None} == {1, 2}
    empty = Memory(0, 0.0, generator)
    empty.keep(1, seen)
    assert empty.recall() is None


def test_batches_without_their_tokens_cannot_be_rewritten() -> None:
    task = Words().view(inputs=lambda b: {"input_ids": b[0]["input_ids"] + 0})
    batch = next(iter(task.batches("train")))
    with pytest.raises(TaskError, match="makes its tokens anew at each call"):
        written(task, batch, torch.zeros(6, 10, dtype=torch.int64), torch.ones(6), torch.ones(6, 10, dtype=torch.bool))


# -- clipping ------------------------------------------------------------------------------------------------------
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


# -- phrases -------------------------------------------------------------------------------------------------------
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


# -- students ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def taught() -> Task:
    torch.manual_seed(0)
    deep = Words(2)
    master = deep.build()
    import dataclasses

    deep.train(master, settings=dataclasses.replace(deep.settings, epochs=12))
    return Words().view(teacher=lambda seed: master)


def gap(task: Task, model: nn.Module) -> float:
    master = task.teacher(0)  # type: ignore[attr-defined]
    total = []
    for batch in task.batches("test"):
        seen = places(task, batch)
        with torch.no_grad():
            own, wanted = task.forward(model.eval(), batch), task.forward(master, batch)
        total.append(float(divergence(seen.rows(own), seen.rows(wanted), "forward").mean()))
    return sum(total) / len(total)


@pytest.mark.parametrize(
    "method",
    [
        GKD(on_policy=0.0, kind="forward"), GKD(on_policy=0.0, kind="reverse"), GKD(on_policy=0.5, memory=2),
        SequenceKD(sampling=1.0), SemanticRevision(span_weight=0.0, task_weight=0.0, top=8),
        SemanticRevision(span_weight=0.0, clip="fixed", on_policy=0.5), RandomSamplingKD(), GKD(lora=4, on_policy=0.0, epochs=3),
    ],
    ids=["forward", "reverse", "on-policy", "sequence", "revision", "fixed", "draws", "lora"],
)  # fmt: skip
def test_a_student_comes_nearer_to_its_teacher(method, taught: Task) -> None:
    torch.manual_seed(2)
    student = taught.build()
    before = gap(taught, student)
    found, (step,) = Recipe([method]).apply(student, taught)
    assert gap(taught, found) < 0.95 * before
    assert step.findings["teacher"] == "the task's"
    if method.__class__ is GKD and method.lora:
        assert any(isinstance(module, LowRankDelta) for module in found.modules())
        assert torch.equal(found.model.embed_tokens.weight, student.model.embed_tokens.weight)  # type: ignore[union-attr]
        assert all(p.requires_grad for name, p in found.named_parameters() if "embed" in name)
    else:
        assert found.state_dict().keys() == student.state_dict().keys()


def test_at_its_limits_semantic_revision_is_word_level_distillation(taught: Task) -> None:
    torch.manual_seed(2)
    student = taught.build()
    plain, _ = Recipe([GKD(on_policy=0.0, kind="forward", epochs=1)]).apply(student, taught)
    limit = SemanticRevision(on_policy=0.0, clip="none", span_weight=0.0, task_weight=0.0, epochs=1)
    found, _ = Recipe([limit]).apply(student, taught)
    for a, b in zip(plain.parameters(), found.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_teacher_in_a_folder_or_an_artifact_teaches_the_same(taught: Task, tmp_path: Path) -> None:
    master = taught.teacher(0)  # type: ignore[attr-defined]
    master.save_pretrained(tmp_path / "folder")
    torch.manual_seed(2)
    student = taught.build()
    bare = Words()
    one, _ = Recipe([GKD(on_policy=0.0, epochs=1)]).apply(student, taught)
    other, _ = Recipe([GKD(on_policy=0.0, epochs=1, teacher=str(tmp_path / "folder"))]).apply(student, bare)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    wide = Words(vocabulary=25)
    for cls in METHODS:
        with pytest.raises(TaskError, match="the teacher's vocabulary has 24 tokens, the student's 25"):
            Recipe([cls(teacher=str(tmp_path / "folder"), epochs=1)]).apply(wide.build(), wide)


def test_a_folder_with_another_tokenizer_is_refused(taught: Task, tmp_path: Path, tokenizer) -> None:
    taught.teacher(0).save_pretrained(tmp_path)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(tmp_path)
    other = Words()
    other.tokenizer = type("Other", (), {"get_vocab": lambda self: {"a": 0}})()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="has another vocabulary than task 'words'"):
        Recipe([GKD(teacher=str(tmp_path))]).apply(other.build(), other)


def test_a_teacher_that_gives_nan_is_refused(taught: Task) -> None:
    broken = Words(2).build()
    with torch.no_grad():
        broken.lm_head.weight[0] = torch.nan
    for cls in METHODS:
        with pytest.raises(NonFiniteError, match="the teacher gave NaN"):
            Recipe([cls()]).apply(taught.build(), taught.view(teacher=lambda seed: broken))


def test_draws_are_kept_and_those_of_another_teacher_refused(taught: Task, tmp_path: Path) -> None:
    calls: list[int] = []
    master = taught.teacher(0)  # type: ignore[attr-defined]
    handle = master.register_forward_hook(lambda *_: calls.append(1))
    method = RandomSamplingKD(epochs=3, cache=str(tmp_path / "draws"))
    student = taught.build()
    try:
        fixed = taught.view(batches=lambda split, seed=0: Words().batches(split, 0), score=lambda *_: 0.0)
        Recipe([method]).apply(student, fixed)
    finally:
        handle.remove()
    assert len(calls) == 2 + 4  # two looks, and each of four batches once in three epochs
    with pytest.raises(ArtifactError, match="holds the outputs of another teacher, or other outputs of this one"):
        Recipe([method.model_copy(update={"draws": 8})]).apply(student, fixed)
    with pytest.raises(ArtifactError, match="holds the outputs of another teacher"):
        Recipe([method]).apply(student, fixed.view(teacher=lambda seed: Words(2).build()))
    wide = Words(vocabulary=300)
    many = RandomSamplingKD(draws=30, cache=str(tmp_path / "many"))
    with pytest.raises(ConfigError, match="30 draws from 300 tokens take 34 bytes a token, more than 30; draw fewer"):
        Recipe([many]).apply(wide.build(), wide.view(teacher=lambda seed: Words(2, 300).build()))


def test_a_token_takes_at_most_30_bytes_on_disk(tmp_path: Path) -> None:
    from lessen.train.output_cache import OutputCache
    from lessen.train.sampled import SampledTeacher

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.randn(64, 49_152, generator=torch.Generator().manual_seed(0)))

        def forward(self, ids: Tensor) -> Tensor:
            return self.rows[ids]

    cache = OutputCache(tmp_path)
    teacher = SampledTeacher(Table(), lambda m, b: m(b), 12, 1.0, torch.Generator().manual_seed(0), cache=cache)
    ids = torch.randint(0, 64, (8, 64), generator=torch.Generator().manual_seed(1))
    first = teacher(ids)
    teacher.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) / ids.numel() <= 30
    again = teacher(ids)
    assert torch.equal(first["draws"], again["draws"])
    assert int(again["vocabulary"][0]) == 49_152


def test_texts_that_never_come_again_are_not_cached(taught: Task, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="with on_policy = 1 no text comes again"):
        Recipe([GKD(on_policy=1.0, cache=str(tmp_path / "c"))]).apply(taught.build(), taught)


def test_phrases_need_a_tokenizer(taught: Task) -> None:
    wide = Words(vocabulary=300)
    with pytest.raises(TaskError, match="has no tokenizer, so that no phrase can be found"):
        Recipe([SemanticRevision()]).apply(wide.build(), wide.view(teacher=lambda seed: Words(2, 300).build()))


# -- cutting layers ------------------------------------------------------------------------------------------------
def test_which_layers_are_kept() -> None:
    assert chosen(30, 10, "spread") == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    assert chosen(12, 6, "first") == [0, 1, 2, 3, 4, 5]
    assert chosen(12, 3, "last") == [9, 10, 11]
    assert chosen(5, 1, "spread") == [0]
    assert all(len(set(chosen(d, n, "spread"))) == n for d in range(2, 40) for n in range(1, d))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_cut_model_is_a_plain_smaller_one(name, tmp_path: Path) -> None:
    import transformers

    from lessen.methods.distil.kd import KD  # noqa: F401 - the family is importable alone

    model = llama(num_hidden_layers=5) if name == "llama" else gpt2()
    method = LayerCut(layers=3 if name == "llama" else 1)
    found, (step,) = Recipe([method]).apply(model, Words())
    kept = step.findings["blocks kept"]
    assert kept == ([0, 2, 4] if name == "llama" else [0])
    assert found.config.num_hidden_layers == len(kept)  # type: ignore[union-attr]
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        expected = found(input_ids=ids).logits
        written = found.generate(ids, max_new_tokens=5, do_sample=False)  # keys and values by the new numbers
    found.save_pretrained(tmp_path / "folder")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, expected)
        assert torch.equal(again.generate(ids, max_new_tokens=5, do_sample=False), written)
    artifact.save(tmp_path / "artifact", found, model)
    loaded = artifact.load(tmp_path / "artifact", model=model)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, expected)
    forecast = method.forecast(model, Words(), Context())
    held = sum(t.nbytes for t in {t.data_ptr(): t for t in found.state_dict().values()}.values())
    assert forecast is not None
    assert forecast.bytes == held


def test_what_cannot_be_cut_is_one_line() -> None:
    with pytest.raises(NothingMatchedError, match="has 2 blocks, of which 2 are kept"):
        Recipe([LayerCut(layers=2)]).apply(llama(), Words())
    mixed = llama(num_hidden_layers=4)
    mixed.config.layer_types = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    with pytest.raises(InputError, match="block 3 of LlamaForCausalLM is of another kind than block 1"):
        LayerCut(layers=2).apply(mixed, Words(), Context())


def test_teacher_is_not_changed_by_any(taught: Task) -> None:
    master = taught.teacher(0)  # type: ignore[attr-defined]
    before = {name: value.clone() for name, value in master.state_dict().items()}
    for cls in (GKD, RandomSamplingKD):
        Recipe([cls(epochs=1)]).apply(taught.build(), taught)
    assert all(torch.equal(value, before[name]) for name, value in master.state_dict().items())
    assert isinstance(Teacher(master, taught.forward), Teacher)
