"""Stages of every host, branches that learn logits, channels, and weak teachers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_models import host, inputs
from lessen.architectures.stages import find_stages
from lessen.errors import ConfigError, InputError, TaskError
from lessen.methods.distil._shared.exits import Merge, branch, grid_of
from lessen.methods.distil._shared.losses import (
    channel_divergence,
    class_of,
    enhanced_cross_entropy,
    row_divergence,
    soft_divergence,
    trust,
)
from lessen.methods.distil.adapt_conf import AdaptConf
from lessen.methods.distil.aug_conf import AugConf
from lessen.methods.distil.cwd import CWD, maps_of
from lessen.methods.distil.kd import KD
from lessen.methods.distil.ofa_kd import OFAKD
from lessen.recipe import Recipe
from lessen.task import Task
from lessen.tasks.vision.shapes import ShapesNet, ShapesOptions, ShapesTask
from lessen.tasks.vision.vit import PlainViT
from soft import logits, softmax


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across, self.along = nn.Linear(tokens, tokens), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.gelu(self.across(self.before(x).transpose(1, 2))).transpose(1, 2)
        return x + F.gelu(self.along(self.between(x)))


class Mixer(nn.Module):
    """Pictures [B, 1, 16, 16] in 16 patches."""

    def __init__(self, depth: int = 4, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.blocks = nn.Sequential(*(MixerBlock(16, width) for _ in range(depth)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1))


class Grey(nn.Module):
    """A network for coloured pictures that is given grey ones."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.expand(-1, 3, -1, -1))


def vit(depth: int = 4) -> nn.Module:
    return Grey(PlainViT(image_size=16, patch_size=4, width=16, depth=depth, heads=2, classes=4, stem=()))


def pictures(count: int = 8) -> Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


# -- stages --------------------------------------------------------------------------------------------------------
def test_the_stages_of_blocks_and_of_maps_are_found() -> None:
    run = lambda model: model(pictures())  # noqa: E731
    assert find_stages(Mixer(12), run) == ("blocks.1", "blocks.3", "blocks.9", "blocks.11")
    assert find_stages(Mixer(2), run) == ("blocks.0", "blocks.1")
    assert [path.rpartition(".")[2] for path in find_stages(vit(12), run)] == ["1", "3", "9", "11"]
    assert find_stages(ShapesNet(), run) == ("wide", "deep")
    deep = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1),
        nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    assert find_stages(deep, run) == ("0", "2", "3")
    with pytest.raises(InputError, match="no stage of Sequential was found"):
        find_stages(nn.Sequential(nn.Flatten(), nn.Linear(256, 4)), run)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_the_stages_of_hosts_are_their_blocks(name) -> None:
    pytest.importorskip("transformers")
    model = host(name)
    found = find_stages(model.eval(), lambda one: one(**inputs(name)))
    known = dict(model.named_modules())
    assert found
    assert all(path in known for path in found)


# -- branches ------------------------------------------------------------------------------------------------------
def test_branches_have_the_form_of_the_paper() -> None:
    first = branch(torch.zeros(2, 8, 8, 8), 3, 64, 96, 5)
    convolutions = [m for m in first.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.stride[0], m.groups) for m in convolutions] == [
        (8, 8, 2, 8), (8, 8, 1, 1), (8, 8, 1, 8), (8, 16, 1, 1),
        (16, 16, 2, 16), (16, 16, 1, 1), (16, 16, 1, 16), (16, 32, 1, 1),
        (32, 32, 2, 32), (32, 32, 1, 1), (32, 32, 1, 32), (32, 96, 1, 1),
    ]  # fmt: skip
    assert all(m.bias is None for m in convolutions)
    assert first(torch.zeros(2, 8, 8, 8)).shape == (2, 5)
    (last,) = (m for m in branch(torch.zeros(2, 8, 4, 4), 0, 64, 96, 5).modules() if isinstance(m, nn.Conv2d))
    assert (last.kernel_size, last.out_channels, last.bias is not None) == ((1, 1), 96, True)
    for tokens, merges in ((16, 0), (197, 1), (196, 1), (28 * 28, 2), (13, 0)):
        made = branch(torch.zeros(2, tokens, 12), 2, 16, 16, 5)
        assert len(made.merges) == merges  # type: ignore[arg-type]
        assert len(made.blocks) == 2  # type: ignore[arg-type]
        assert made(torch.zeros(2, tokens, 12)).shape == (2, 5)
    assert grid_of(197) == (14, 1)
    assert grid_of(24) == (4, 8)
    assert grid_of(48) == (0, 0)
    with pytest.raises(TaskError, match=r"a stage gives features of shape \(2, 3\)"):
        branch(torch.zeros(2, 3), 0, 8, 8, 2)


def test_a_merge_takes_neighbours_in_a_square() -> None:
    merge = Merge(1, 4, last=True)
    merge.norm = nn.Identity()
    with torch.no_grad():
        merge.linear.weight.copy_(torch.eye(4))
    found = merge(torch.arange(16.0).view(1, 16, 1))
    assert found[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


# -- losses --------------------------------------------------------------------------------------------------------
def test_the_enhanced_loss_is_that_of_three_classes_by_hand() -> None:
    own, wanted, target = torch.tensor([[0.2, -0.1, 0.4]]), torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0])
    p, q = softmax(wanted[0].tolist()), softmax(own[0].tolist())
    weights = [(1 + p[0]) ** 1.5 - 1, p[1] ** 1.5, p[2] ** 1.5]
    expected = -sum(w * math.log(x) for w, x in zip(weights, q, strict=True))
    assert float(enhanced_cross_entropy(own, wanted, target, 1.5, 1.0)) == pytest.approx(expected, rel=1e-5)
    assert pytest.approx(1.828, abs=1e-3) == (1 + 1.0) ** 1.5 - 1


def test_at_exponent_one_it_is_distillation() -> None:
    own, wanted = logits()
    target = torch.tensor([0, 1, 2, 3, 4])
    found = enhanced_cross_entropy(own, wanted, target, 1.0, 1.0)
    assert float(found) == pytest.approx(float(F.cross_entropy(own, wanted.softmax(1))), rel=1e-6)
    left, right = own.clone().requires_grad_(), own.clone().requires_grad_()
    (one,) = torch.autograd.grad(enhanced_cross_entropy(left, wanted, target, 1.0, 1.0), left)
    (other,) = torch.autograd.grad(soft_divergence(right, wanted, 1.0), right)
    assert torch.allclose(one, other, atol=1e-7)
    assert torch.equal(class_of(torch.tensor([[0.2, 0.7, 0.1]])), torch.tensor([1]))


def test_the_true_class_of_the_minimum_grows_with_the_exponent() -> None:
    p = torch.tensor([0.5, 0.3, 0.2])
    mask = torch.tensor([1, 0, 0])
    best = []
    for exponent in (1.0, 1.5, 2.0):
        weights = (p + mask) ** exponent - mask
        assert bool((weights >= 0).all())
        best.append(float(weights[0] / weights.sum()))
    assert best == sorted(best)
    assert best[0] < best[2]


def test_channels_are_compared_over_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    own, wanted = (torch.randn(2, 3, 2, 2, generator=generator) for _ in range(2))
    expected = 0.0
    for b in range(2):
        for c in range(3):
            p, q = (softmax([v / 4 for v in maps[b, c].flatten().tolist()]) for maps in (wanted, own))
            expected += 16 / 3 / 2 * sum(a * math.log(a / b_) for a, b_ in zip(p, q, strict=True))
    assert float(channel_divergence(own, wanted, 4.0)) == pytest.approx(expected, rel=1e-4)
    tokens = torch.arange(10.0).view(1, 5, 2)
    assert maps_of(tokens)[0, 0].tolist() == [[2, 4], [6, 8]]  # the class token is left out
    with pytest.raises(TaskError, match=r"cwd compares places, and a layer gives features of shape \(4, 8\)"):
        maps_of(torch.zeros(4, 8))


def test_trust_is_half_where_both_agree_and_less_elsewhere() -> None:
    own, wanted = logits(400, 6)
    for sharpness in (0.1, 0.5, 4.0):
        alpha, cost = trust(own, wanted, sharpness)
        agree = own.argmax(1) == wanted.argmax(1)
        assert bool(((alpha > 0) | ~agree).all())
        assert bool((alpha <= 0.5).all())
        assert torch.equal(alpha == 0.5, agree)
        assert not alpha.requires_grad
        assert torch.allclose(cost, F.cross_entropy(own, own.argmax(1), reduction="none"))
    assert float(trust(own, wanted, 1e6)[0].min()) == pytest.approx(0.5, abs=1e-4)
    assert float(trust(own, wanted, 1e-4)[0][~agree].max()) < 0.1


def test_the_parts_of_adaptconf_are_those_of_a_loop() -> None:
    own, wanted = logits()
    expected = 0.0
    for o, w in zip(own.double().tolist(), wanted.double().tolist(), strict=True):
        q, p = softmax(o), softmax(w)
        mine = -math.log(max(q))
        theirs = -math.log(q[p.index(max(p))])
        alpha = 1 / (1 + math.exp((theirs - mine) / 0.5))
        gap = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        expected += ((1 - alpha) * gap + alpha * mine) / 5
    alpha, cost = trust(own, wanted, 0.5)
    found = ((1 - alpha) * row_divergence(own, wanted, 1.0) + alpha * cost).mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)
    own = own.requires_grad_()  # equal answers: half of the cross-entropy with its own class
    alpha, cost = trust(own, own.detach(), 0.5)
    (slope,) = torch.autograd.grad(((1 - alpha) * row_divergence(own, own.detach(), 1.0) + alpha * cost).mean(), own)
    (half,) = torch.autograd.grad(0.5 * F.cross_entropy(own, own.argmax(1)), own)
    assert torch.allclose(slope, half, atol=1e-7)


# -- students ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def task() -> Task:
    """Shapes with a teacher of another family."""
    plain = ShapesTask(ShapesOptions(examples=240))
    torch.manual_seed(3)
    master = vit()
    plain.train(master, settings=replace(plain.settings, epochs=2))
    return plain.view(teacher=lambda seed: master, settings=replace(plain.settings, epochs=2, patience=None))


@pytest.mark.parametrize("student", [ShapesNet, Mixer, vit], ids=["cnn", "mixer", "vit"])
@pytest.mark.parametrize(
    "method", [OFAKD(exponent=1.5), CWD(), AdaptConf(task_weight=0.0), AugConf()], ids=["ofa", "cwd", "adapt", "aug"]
)
def test_a_student_of_any_family_learns_and_stays_what_it_was(method, student, task: Task) -> None:
    torch.manual_seed(0)
    model = student()
    found, (step,) = Recipe([method]).apply(model, task)
    assert found.state_dict().keys() == model.state_dict().keys()
    assert any(not torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in found.modules())
    if isinstance(method, OFAKD):
        assert step.findings["stages"] == list(OFAKD().student_taps(model, task, task.example_batch()))


def test_without_branches_at_exponent_one_ofa_is_distillation(task: Task) -> None:
    model = ShapesNet()
    one, _ = Recipe([OFAKD(stage_weight=0.0, epochs=1)]).apply(model, task)
    other, _ = Recipe([KD(weight=1.0, task_weight=1.0, temperature=1.0, epochs=1)]).apply(model, task)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_trust_rises_with_training(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    from lessen.methods.distil import adapt_conf, aug_conf

    seen: list[float] = []
    for module, method in ((adapt_conf._Surer, AdaptConf(rise=0.5)), (aug_conf._Rising, AugConf(rise=0.5))):
        whole = module.term

        def told(self, student, teacher, whole=whole):
            seen.append(self.done)
            return whole(self, student, teacher)

        monkeypatch.setattr(module, "term", told)
        seen.clear()
        Recipe([method]).apply(ShapesNet(), task)
        assert sorted(set(seen)) == [0.0, 0.5]
        seen.clear()
        by_steps = task.view(settings=replace(task.settings, steps=4))
        Recipe([method]).apply(ShapesNet(), by_steps)
        assert seen == [0.0, 0.25, 0.5, 0.75]


def test_stages_that_are_not_there_are_one_line(task: Task) -> None:
    with pytest.raises(ConfigError, match="ofa-kd: stages names 'depp', which the student lacks; did you mean 'deep'"):
        Recipe([OFAKD(stages=("wide", "depp"))]).apply(ShapesNet(), task)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))
    for method in (OFAKD(), CWD()):
        with pytest.raises(InputError, match="no stage of Sequential was found"):
            Recipe([method]).apply(flat, task)
    with pytest.raises(TaskError, match="cwd compares places"):
        Recipe([CWD(layer="hidden")]).apply(ShapesNet(), task)
    other = task.view(teacher=lambda seed: Mixer(classes=5))
    for method in (OFAKD(), AdaptConf(), AugConf()):
        with pytest.raises(TaskError, match=r"the teacher answers with shape \(64, 5\), the student with \(64, 4\)"):
            Recipe([method]).apply(ShapesNet(), other)
