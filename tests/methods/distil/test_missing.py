"""Optional inputs: how they are left out, and models that do without."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lessen.errors import ConfigError, TaskError
from lessen.method import Context
from lessen.methods.distil._shared.optional import Optional
from lessen.methods.distil.distill_am import DistillAM
from lessen.methods.distil.drop_am import DropAM
from lessen.metrics import ACCURACY
from lessen.recipe import Recipe
from lessen.task import Task
from lessen.tasks.ctr.synthetic import SyntheticClicks, SyntheticOptions
from lessen.testing.toys import TableTask
from lessen.train.settings import FitSettings


class Told(Task):
    """A weak measurement and two hints, which are nearly always right."""

    name = "told"
    metrics = {"accuracy": ACCURACY}
    settings = FitSettings(epochs=12, learning_rate=1e-2, patience=None, plateau_factor=1.0)
    optional = ("one", "two")

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))

    def batches(self, split, seed=0):
        generator = torch.Generator().manual_seed({"train": 1, "validation": 2, "test": 3}[split])
        label = torch.randint(0, 2, (600,), generator=generator)
        weak = (2 * label - 1)[:, None] * 0.8 + torch.randn(600, 1, generator=generator)
        hints = [
            torch.nn.functional.one_hot(label ^ (torch.rand(600, generator=generator) < 0.05).long(), 2).float()
            for _ in range(2)
        ]
        rows = torch.cat([weak, *hints], dim=1)
        order = torch.randperm(600, generator=torch.Generator().manual_seed(seed))
        for part in (order if split == "train" else torch.arange(600)).split(100):
            yield rows[part], label[part]

    def loss(self, model: nn.Module, batch) -> Tensor:
        return nn.functional.cross_entropy(self.forward(model, batch), batch[1])

    def without(self, batch, keep: Tensor):
        whole = torch.cat([torch.ones(len(keep), 1, dtype=torch.bool), keep.repeat_interleave(2, dim=1)], dim=1)
        return batch[0] * whole, batch[1]


@pytest.fixture(scope="module")
def clicks() -> Task:
    return SyntheticClicks(SyntheticOptions(rows=600, fields=3, rows_per_field=20))


def test_a_field_that_is_absent_is_padding_in_its_rows_alone(clicks: Task) -> None:
    batch = next(iter(clicks.batches("test")))
    names = [field.name for field in clicks.layout.fields]  # type: ignore[attr-defined]
    optional = Optional(clicks, (names[0], f"{names[1]}+{names[2]}"))
    keep = torch.ones(len(batch[1]), 2, dtype=torch.bool)
    assert optional.without(batch, keep) is batch
    keep[0, 0], keep[1, 1] = False, False
    found = optional.without(batch, keep)[0]["ids"]
    assert found[0].tolist() == [0, *batch[0]["ids"][0, 1:].tolist()]
    assert found[1].tolist() == [int(batch[0]["ids"][1, 0]), 0, 0]
    assert torch.equal(found[2:], batch[0]["ids"][2:])
    assert found.dtype == batch[0]["ids"].dtype
    assert int((batch[0]["ids"] == 0).sum()) == 0  # the task's own batch is as it was
    assert list(optional.patterns()) == ["all", f"without {names[0]}", f"without {names[1]}+{names[2]}", "none"]


def test_draws_have_the_rate_and_do_not_know_of_one_another() -> None:
    task, seen = Told(), []
    optional = Optional(task)
    generator = torch.Generator().manual_seed(0)
    whole = (torch.ones(10_000, 5), torch.zeros(10_000))
    rows = optional.drawn(whole, 0.3, generator)[0]
    seen = [rows[:, 1] == 0, rows[:, 3] == 0]
    for dropped in seen:
        assert abs(float(dropped.float().mean()) - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 10_000)
    observed = torch.tensor([[float((a & b).sum()) for b in (seen[1], ~seen[1])] for a in (seen[0], ~seen[0])])
    expected = observed.sum(1, keepdim=True) * observed.sum(0, keepdim=True) / 10_000
    assert float(((observed - expected) ** 2 / expected).sum()) < 10.8  # chi-squared, one degree, 0.1 %
    assert optional.drawn(whole, 0.0, generator) is whole
    assert not bool(optional.drawn(whole, 1.0, generator)[0][:, 1:].any())


def test_at_rate_0_it_is_the_tasks_training_bit_for_bit() -> None:
    task = Told()
    model = task.build()
    import copy

    plain = copy.deepcopy(model)
    with torch.random.fork_rng():
        task.train(plain, seed=0)
    for method in (DropAM(rate=0.0), DistillAM(rate=0.0, weight=0.0)):
        found, _ = Recipe([method]).apply(model, task)
        for a, b in zip(plain.parameters(), found.parameters(), strict=True):
            assert torch.equal(a, b)


def test_at_rate_1_the_inputs_are_never_seen() -> None:
    task = Told()
    model = task.build()
    one, _ = Recipe([DropAM(rate=1.0)]).apply(model, task)

    def mixed(split, seed=0):
        for x, y in task.batches(split, seed):
            x = x.clone()
            x[:, 1:] = x[:, 1:].flip(0)
            yield x, y

    changed = task.view(batches=lambda split, seed=0: mixed(split, seed) if split == "train" else task.batches(split))
    other, _ = Recipe([DropAM(rate=1.0, epochs=12)]).apply(model, changed)
    assert torch.equal(one[0].weight, other[0].weight)  # type: ignore[index]


def test_students_do_without_what_plain_training_needs() -> None:
    task = Told()
    torch.manual_seed(0)
    plain = task.reference(0)
    before = Optional(task).scores(plain)
    assert before["all"] > before["none"] + 0.1
    for method in (DropAM(), DistillAM()):
        found, (step,) = Recipe([method]).apply(plain, task)
        after = step.findings["score by inputs"]
        assert list(after) == ["all", "without one", "without two", "none"]
        assert after["none"] >= before["none"]
        assert after["all"] > 0.9
        assert after == Optional(task).scores(found)
    assert step.findings["teacher"] == "the given model"


def test_a_student_that_is_its_teacher_starts_without_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    from lessen.methods.distil import distill_am

    terms: list[float] = []
    whole = distill_am.soft_divergence

    def told(*given):
        terms.append(float(whole(*given).detach()))
        return whole(*given)

    monkeypatch.setattr(distill_am, "soft_divergence", told)
    task = Told()
    Recipe([DistillAM(rate=0.0, epochs=1)]).apply(task.reference(0), task)
    assert terms[0] == pytest.approx(0, abs=1e-6)
    terms.clear()
    Recipe([DistillAM(rate=0.5, epochs=1)]).apply(task.reference(0), task)
    assert terms[0] > 1e-3


def test_what_has_no_optional_inputs_is_one_line(clicks: Task) -> None:
    with pytest.raises(TaskError, match="the inputs of task 'contract-tables' have no optional parts; give it `optio"):
        DropAM().apply(TableTask().build(), TableTask(), Context())
    with pytest.raises(ConfigError, match="'on' is no optional input of task 'told'; did you mean 'one'"):
        DropAM(inputs=("on",)).apply(Told().build(), Told(), Context())
    with pytest.raises(ConfigError, match="'one' stands in two groups of optional inputs"):
        DistillAM(inputs=("one", "one+two")).apply(Told().build(), Told(), Context())
