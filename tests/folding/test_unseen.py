"""What a fold did not see: lengths and keywords, values kept by a forward, buffers of two names, inputs written over."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lessen.folding.run import fold


def folded(model, *given, fresh=()):
    found = fold(model.eval(), [(given, {})], torch.Generator().manual_seed(1))
    for x in fresh:
        with torch.no_grad():
            torch.testing.assert_close(found.model(x.clone()), model(x.clone()), rtol=1e-4, atol=1e-5)
    return found


def ids(*shape):
    return torch.randint(0, 20, shape, generator=torch.Generator().manual_seed(3))


class Part(nn.Module):
    """A forward of a line."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, value in parts.items():
            setattr(self, name, value)

    def forward(self, *arguments, **keywords):
        return self.run(self, *arguments, **keywords)


def weight(*shape):
    return nn.Parameter(torch.randn(*shape))


class Marked(nn.Module):
    """A word of its own before the others, as in a vision Transformer."""

    def __init__(self):
        super().__init__()
        self.mark = Part(lambda self, x: self.w.expand(len(x), -1, -1), w=weight(1, 1, 8))
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.table(x)
        return self.head(torch.tanh(torch.cat([self.mark(x), x], 1)))


def test_a_part_of_weights_that_is_told_the_batch_is_no_constant_though_one_row_was_given():
    torch.manual_seed(0)
    assert not folded(Marked(), ids(1, 3), fresh=[ids(2, 3), ids(3, 5)]).folds


def by_keyword(self, x):
    return self.head(torch.tanh(self.table(x) + self.part(length=x.shape[1])))


def by_numbers(self, x):
    return self.head(torch.tanh(self.table(x) + self.part(self.numbers[:, : x.shape[1]])))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    ("run", "part"),
    [
        (by_keyword, lambda: Part(lambda self, length: self.w / length, w=weight(8))),
        (by_keyword, lambda: Part(lambda self, length: self.w[:length], w=weight(20, 8))),
        (by_numbers, lambda: nn.Embedding(20, 8)),
    ],
)
def test_a_part_of_weights_that_is_told_a_length_is_no_constant(run, part, rows):
    torch.manual_seed(0)
    model = Part(run, table=nn.Embedding(20, 8), part=part(), head=nn.Linear(8, 2))
    model.register_buffer("numbers", torch.arange(20)[None])
    assert not folded(model, ids(rows, 6), fresh=[ids(3, 5), ids(2, 6), ids(1, 1)]).folds


def test_bert_answers_other_lengths_after_folding():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    bert = transformers.BertModel(config)
    model = Part(lambda self, x: self.bert(input_ids=x).last_hidden_state, bert=bert)
    folded(model, ids(4, 6), fresh=[ids(3, 5), ids(2, 11), ids(1, 1)])


class Keeping(nn.Module):
    """Works something out of a weight at its first call, and keeps it."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.kept = nn.Linear(8, 8), nn.BatchNorm1d(8), None
        self.norm.running_var.fill_(3.0)

    def forward(self, x):
        if self.kept is None:
            self.kept = self.layer.weight.detach() * 2
        return torch.tanh(self.norm(self.layer(x))) @ self.kept.to(x.dtype)


def test_a_weight_that_a_forward_read_at_its_first_call_is_left():
    torch.manual_seed(0)
    found = folded(Keeping(), torch.randn(4, 8), fresh=[torch.randn(3, 8)])
    assert not found.folds
    assert found.kept["norm"] == "folding it changes an answer in the model's own precision"


def test_a_buffer_of_two_names_stays_one():
    torch.manual_seed(0)

    def run(self, x):
        return self.head(self.norm(self.head.first(x)) * self.head.scale + self.scale)

    head = Part(lambda self, x: torch.tanh(self.last(x)), first=nn.Linear(8, 8), last=nn.Linear(8, 2))
    model = Part(run, head=head, norm=nn.BatchNorm1d(8))
    head.register_buffer("scale", torch.randn(8))
    model.register_buffer("scale", head.scale)
    found = folded(model, torch.randn(4, 8), fresh=[torch.randn(3, 8)])
    assert [each.kind for each in found.folds] == ["batch norm"]
    assert found.model.scale is found.model.head.scale


def test_a_forward_that_writes_over_its_input_is_folded_and_the_input_stays():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Tanh())
    given, model = torch.randn(4, 8), Part(lambda self, x: self.layers(x.mul_(2.0)), layers=layers)
    before = given.clone()
    assert [each.kind for each in folded(model, given, fresh=[torch.randn(3, 8)]).folds] == ["linear chain"]
    assert torch.equal(given, before)


@pytest.mark.parametrize("function", [torch.relu, torch.sigmoid, F.gelu])
def test_a_function_told_its_input_by_name_stands_between_units(function):
    torch.manual_seed(0)
    first, last = nn.Linear(8, 8), nn.Linear(8, 8)
    first.weight.data[3] = 0
    model = Part(lambda self, x: self.last(function(input=self.first(x))), first=first, last=last)
    assert [each.kind for each in folded(model, torch.randn(4, 8), fresh=[torch.randn(3, 8)]).folds] == ["1 units"]


def test_linear_steps_told_by_name_in_any_order_are_one_layer():
    torch.manual_seed(0)

    def run(self, x):
        x = F.linear(x, bias=self.b, weight=self.w)
        return torch.sub(other=F.linear(weight=self.w, input=x), input=x)

    model = Part(
        lambda self, x: torch.tanh(self.part(x)) * self.scale,
        part=Part(run, w=weight(8, 8), b=weight(8)),
        scale=weight(8),
    )
    assert [each.kind for each in folded(model, torch.randn(4, 8), fresh=[torch.randn(3, 8)]).folds] == ["linear steps"]


class OverView(nn.Module):
    """Writes over a view of the rows that it is told."""

    def __init__(self, out):
        super().__init__()
        self.layer = nn.Linear(8, out)

    def forward(self, x):
        x[:].relu_()
        return torch.tanh(self.layer(x))


@pytest.mark.parametrize(("rows", "out"), [(20, 4), (200, 40)])
def test_asking_a_part_about_all_rows_leaves_the_table_alone(rows, out):
    torch.manual_seed(0)
    model = Part(lambda self, x: self.layer(self.table(x)), table=nn.Embedding(rows, 8), layer=OverView(out))
    before = model.table.weight.detach().clone()
    found = folded(model, ids(4, 6), fresh=[ids(3, 5)])
    assert torch.equal(found.model.table.weight, before) == (not found.folds)


@pytest.mark.parametrize(
    ("of", "outside"),
    [(lambda x: x % 20, 20), (lambda x: x.clamp(0, 19), -1), (lambda x: x // 2, 20), (lambda x: x.clamp(min=0), -1)],
)
def test_a_part_that_answers_ids_beside_its_rows_is_no_table(of, outside):
    torch.manual_seed(0)
    part = Part(lambda self, x: F.normalize(self.table(of(x)), dim=-1), table=nn.Embedding(20, 8))
    model = Part(lambda self, x: self.head(self.part(x)), part=part, head=nn.LayerNorm(8))
    found = folded(model, ids(4, 6), fresh=[ids(3, 5), torch.tensor([[outside]])])
    assert found.kept["part"] == f"it answers id {outside} too, which a table of 20 rows would refuse"


def test_a_table_of_answers_keeps_its_padding_row():
    torch.manual_seed(0)

    def run(self, x):
        seen = x != self.table.padding_idx
        return self.head((self.layer(self.table(x)).movedim(-1, 0) * seen).movedim(0, -1).sum(1))

    table, layer = nn.Embedding(20, 8, padding_idx=0), nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    model = Part(run, table=table, layer=layer, head=nn.Linear(4, 2))
    found = folded(model, ids(4, 6).clamp(min=1), fresh=[torch.tensor([[0, 3, 0], [4, 0, 7]])])
    assert [each.kind for each in found.folds] == ["serving table"]


def test_rows_that_count_for_more_when_they_stand_there_twice_are_no_table():
    torch.manual_seed(0)

    def run(self, x):
        return self.table(x) * (x.flatten() == x[..., None]).sum(-1, keepdim=True)

    model = Part(
        lambda self, x: self.head(self.part(x)), part=Part(run, table=nn.Embedding(20, 8)), head=nn.LayerNorm(8)
    )
    every = torch.arange(20).reshape(4, 5)
    assert not [one for one in folded(model, every, fresh=[ids(3, 5)]).folds if one.path == "part"]
