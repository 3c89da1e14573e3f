"""A layer that the forward reaches beside the module tree: refused, for what replaces it would never be read."""

import functools

import pytest
import torch
from torch import nn

from lessen.errors import InputError
from lessen.metrics import AUC
from lessen.recipe import Recipe
from lessen.task import Task

STEP = Recipe.parse({"steps": [{"emb-rowwise-quant": {"bits": 4}}]})


class Net(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.table = nn.Embedding(2000, 8)
        self.out = nn.Linear(8, 1)
        self.keep = keep(self.table)

    def look(self, ids):
        return self.table(ids)

    def forward(self, ids):
        return self.out(self.look(ids)).squeeze(-1)


class Dict(Net):
    def look(self, ids):
        return self.keep["table"](ids)


class Listed(Net):
    def look(self, ids):
        return self.keep[0][0](ids)


class Closed(Net):
    def look(self, ids):
        return self.keep(ids)


class Plain:
    def __init__(self, table):
        self.table = table


class Object(Net):
    def look(self, ids):
        return self.keep.table(ids)


class Rows(Task):
    name = "rows"
    metrics = {"auc": AUC}

    def __init__(self, model):
        self.model = model

    def build(self):
        return self.model

    def batches(self, split, seed=0):
        ids = torch.arange(64) * 3 % 2000
        yield ids, (ids % 2).float()


WAYS = {
    "dict": (Dict, lambda table: {"table": table}),
    "nested list": (Listed, lambda table: [(table,)]),
    "closure": (Closed, lambda table: lambda ids: table(ids)),
    "partial": (Closed, lambda table: functools.partial(nn.Module.__call__, table)),
    "bound method": (Closed, lambda table: table.forward),
    "object": (Object, Plain),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_replaced_table_must_not_be_reachable(way):
    kind, keep = WAYS[way]
    model = kind(keep)
    with pytest.raises(InputError, match=r"keep keeps the layer 'table' outside"):
        STEP.apply(model, Rows(model))


@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_alone_may_be_kept_anywhere(way):
    kind, keep = WAYS[way]
    model = kind(keep)
    compact, _ = Recipe([]).apply(model, Rows(model))
    ids = torch.arange(20)
    assert torch.equal(compact(ids), model.eval()(ids))


LOOSE = nn.Embedding(2000, 8)


class Global(Net):
    def look(self, ids):
        return LOOSE(ids) if type(self.table) is not nn.Embedding else self.table(ids)


def test_a_replacement_must_be_called_where_the_layer_was():
    model = Global(lambda _: None)
    with pytest.raises(InputError, match="calls 'table', and not the"):
        STEP.apply(model, Rows(model))


def test_a_table_that_no_forward_reads_may_be_replaced():
    class Spare(Net):
        def look(self, ids):
            return torch.ones(len(ids), 8)

    model = Spare(lambda _: None)
    assert type(STEP.apply(model, Rows(model))[0].table) is not nn.Embedding


def test_a_model_that_fails_on_its_first_batch_is_refused_before_any_step():
    class Broken(Net):
        def look(self, ids):
            raise ValueError("no such\nrows")

    model = Broken(lambda _: None)
    with pytest.raises(InputError, match="cannot call Broken on its first test batch: ValueError: no such rows"):
        STEP.apply(model, Rows(model))
