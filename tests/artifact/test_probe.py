"""Probes: inputs of any nesting come back as they were, and outputs that are not recorded are compared all the same."""

import pytest
import torch
from torch import nn

import lessen
from lessen.artifact import folder as artifact
from lessen.artifact import probe
from lessen.errors import ArtifactError, InputError
from lessen.metrics import AUC
from lessen.task import Task

A, B = torch.arange(6).reshape(2, 3), torch.rand(2, 2)


class Echo(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(2, 1)
        self.seen = None

    def forward(self, *inputs, **named):
        self.seen = (inputs, named)
        return self.out(B)


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (tuple, list)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return left == right and type(left) is type(right)


@pytest.mark.parametrize(
    "inputs",
    [
        A, (A, B), {"ids": A, "dense": B}, [A, B], (B, [A, A], [B]), (A, None), (A, 3, 0.5, True, "mean"),
        {"ids": {"user": A, "item": [B, (A,)]}, "mask": None}, [], ([],), {"a.b": A, "c": [A]},
    ],
)  # fmt: skip
def test_inputs_come_back_as_they_were(inputs, tmp_path):
    model = Echo()
    artifact.save(tmp_path / "kept", model, model, probe=inputs)
    again = Echo()
    tensors = probe.record(model, inputs)
    wanted = model.seen
    probe.run(again, {**tensors, "output": again.out(B).detach()}, "here", "1")
    assert same(again.seen, wanted)
    assert artifact.verify(tmp_path / "kept", Echo()).probe == "equal"


@pytest.mark.parametrize("inputs", ["x", torch.ones(3)])
def test_a_probe_that_the_model_cannot_take_is_one_line(inputs, tmp_path):
    model = nn.Embedding(4, 2)
    with pytest.raises(InputError, match="Embedding cannot be called with the inputs to record: "):
        artifact.save(tmp_path / "kept", model, model, probe=inputs)
    assert not (tmp_path / "kept").exists()


def test_a_nested_tensor_is_refused_by_name(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("parts", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
    with pytest.raises(ArtifactError, match="'parts' cannot be stored: it is a nested tensor"):
        artifact.save(tmp_path / "kept", model, model)


class Rows(Task):
    name = "rows"
    metrics = {"auc": AUC}

    def build(self):
        return Lists()

    def batches(self, split, seed=0):
        ids = torch.arange(64) * 7 % 50
        yield [ids, ids + 1], (ids % 2).float()


class Lists(nn.Module):
    """Takes one list of ids, as DLRM does."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(60, 8) for _ in range(2))
        self.out = nn.Linear(8, 1)

    def forward(self, ids):
        return self.out(sum(table(one) for table, one in zip(self.tables, ids, strict=True))).squeeze(-1)


def test_a_model_that_takes_a_list_is_saved_with_a_probe(tmp_path):
    trade = lessen.compress(Lists(), Rows(), {"emb-rowwise-quant": {"min_rows": 1}}, margin=1.0)
    trade.save(tmp_path / "small")
    assert lessen.verify(tmp_path / "small", model=Lists()).probe == "equal"


class TwoCalls(Lists):
    """Is scored by a method of its own, as RecBole's models are; `forward` gives two tensors."""

    def forward(self, ids):
        return tuple(table(one) for table, one in zip(self.tables, ids, strict=True))

    def predict(self, ids):
        return self.out(sum(self(ids))).squeeze(-1)


class Scored(Rows):
    def forward(self, model, batch):
        return model.predict(batch[0])


def test_a_task_with_a_forward_of_its_own_is_saved_and_compared(tmp_path):
    trade = lessen.compress(TwoCalls(), Scored(), {"emb-rowwise-quant": {"min_rows": 1}}, margin=1.0)
    trade.save(tmp_path / "small")
    assert lessen.verify(tmp_path / "small", model=TwoCalls()).probe == "none"
    batch = Scored().example_batch()
    kept = lessen.load(tmp_path / "small", model=TwoCalls())
    assert torch.equal(kept.predict(batch[0]), trade.model.predict(batch[0]))


class Strange(Rows):
    def batches(self, split, seed=0):
        for ids, target in super().batches(split, seed):
            yield [*ids, object()], target


class Loose(Lists):
    def forward(self, ids):
        return super().forward(ids[:2])


def test_what_cannot_be_saved_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr("lessen.recipe.Recipe.apply", lambda *_, **__: pytest.fail("worked"))
    with pytest.raises(ArtifactError, match="inputs hold a object"):
        lessen.compress(Loose(), Strange(), {"emb-rowwise-quant": {"min_rows": 1}}, margin=1.0)


def test_a_model_that_reads_back_differently_is_not_kept(tmp_path):
    class Shifted(Lists):
        shift = 0.0

        def forward(self, ids):
            return super().forward(ids) + self.shift

    trade = lessen.compress(Shifted(), Rows(), {"emb-rowwise-quant": {"min_rows": 1}}, margin=1.0)
    trade.model.shift = 1.0  # a plain attribute, which is part of no state
    with pytest.raises(ArtifactError, match="read back: outputs differ"):
        trade.save(tmp_path / "small")
    assert not (tmp_path / "small").exists()
