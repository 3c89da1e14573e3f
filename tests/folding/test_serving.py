"""Folds of what serves: tables of answers (CLHE), prompts (PRE), one matrix for a block's steps (CRATE), and what stays."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lessen import artifact
from lessen.folding.run import fold
from tests.folding.serving_hosts import ISTA, Bundles, Crate, ItemEncoder, Prompted, tower


def folded(model, *inputs):
    """Fold, and compare with the model in float64 on inputs that the fold did not see."""
    found = fold(model.eval(), [(inputs, {})], torch.Generator().manual_seed(1))
    assert found.error <= found.bound
    fresh = [x.flip(0) if x.dtype == torch.int64 else torch.randn(3, *x.shape[1:]) for x in inputs]
    with torch.no_grad():
        torch.testing.assert_close(found.model(*fresh), model(*fresh), rtol=1e-4, atol=1e-5)
    return found


def numbers(model):
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def ids(*shape, below=50):
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(3))


def saved(found, model, folder, *inputs):
    """Return the answer of an artifact, loaded into the code of the model with other weights."""
    artifact.save(folder / "a", found.model, model)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.zero_()
    with torch.no_grad():
        return artifact.load(folder / "a", model=other)(*inputs), found.model(*inputs)


def test_item_encoders_become_tables_of_their_answers(tmp_path):
    torch.manual_seed(0)
    model = Bundles()
    found = folded(model, ids(4, 6))
    assert {(each.kind, each.path) for each in found.folds} == {
        ("constant part", "output_items"), ("serving table", "input_items"),
    }  # fmt: skip
    assert found.model.input_items.weight.shape == (50, 8)
    assert numbers(found.model) == 2 * 50 * 8 + 2 * (8 * 8 + 8) + 50  # the layers of the bundle and the ids stay
    one, other = saved(found, model, tmp_path, ids(2, 5))
    assert torch.equal(one, other)


def test_every_id_gets_the_answer_of_the_encoder():
    torch.manual_seed(0)
    model = Bundles(30)
    found = folded(model, ids(4, 2, below=9))  # most ids are in no input that the fold sees
    torch.testing.assert_close(found.model.input_items.weight, model.input_items(torch.arange(30)))


class Contents(nn.Module):
    """Indexes its rows, which counts ids below zero from the end."""

    def __init__(self):
        super().__init__()
        self.register_buffer("content", torch.randn(30, 32))
        self.layers = tower(32, 8)

    def forward(self, x):
        return F.normalize(self.layers(self.content[x]), dim=-1)


def test_rows_that_are_indexed_still_count_from_the_end(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(Contents(), nn.LayerNorm(8))
    found = folded(model, ids(4, 6, below=30))
    assert [(each.kind, each.path) for each in found.folds] == [("serving table", "0")]
    below = torch.tensor([[-1, -30, 3]])
    torch.testing.assert_close(found.model(below), model(below))
    for outside in (30, -31):
        with pytest.raises(IndexError):
            found.model(torch.tensor([[outside]]))
    one, other = saved(found, model, tmp_path, below)
    assert torch.equal(one, other)


def test_prompts_and_the_tower_that_reads_them_leave_a_vector_a_class(tmp_path):
    torch.manual_seed(0)
    model = Prompted()
    found = folded(model, torch.randn(5, 20))
    assert {each.kind for each in found.folds} == {"constant part"}
    # a vector for each of 5 classes, the picture's layer, the scale, and an empty place where prompts were
    assert numbers(found.model) == 5 * 16 + 20 * 16 + 16 + 1 + 1
    one, other = saved(found, model, tmp_path, torch.randn(2, 20))
    assert torch.equal(one, other)


def test_three_products_with_a_dictionary_are_one(tmp_path):
    torch.manual_seed(0)
    model = Crate()
    found = folded(model, torch.randn(4, 7, 16))
    assert [(each.kind, each.path) for each in found.folds] == [("linear steps", "ista")]
    dictionary = model.ista.dictionary.detach()
    expected = torch.eye(16) + 0.1 * (dictionary - dictionary.t() @ dictionary)
    torch.testing.assert_close(found.model.ista[0].weight, expected.t())
    torch.testing.assert_close(found.model.ista[0].bias, torch.full((16,), -0.01))
    one, other = saved(found, model, tmp_path, torch.randn(2, 7, 16))
    assert torch.equal(one, other)


def test_a_table_takes_in_the_layers_that_alone_follow_it():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(30, 16)
            self.layers = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 8))
            self.head = nn.Linear(8, 1)

        def forward(self, x):
            return self.head(self.layers(self.table(x)).sum(1))

    found = folded(Net(), ids(4, 6, below=30))
    assert [(each.kind, each.path, each.into) for each in found.folds] == [("serving table", "layers", "table")]
    assert numbers(found.model) == 30 * 8 + 9


class WithPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.place = nn.Embedding(30, 8), nn.Parameter(torch.randn(6, 8))

    def forward(self, x):
        return self.table(x) + self.place[: x.shape[1]]


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.block = nn.Embedding(30, 8), nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)

    def forward(self, x):
        return self.block(self.table(x))


class Tied(nn.Module):
    """Its table is read a second time, by the head."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(30, 16), nn.Sequential(nn.Linear(16, 16), nn.ReLU())

    def forward(self, x):
        return self.layer(self.table(x)) @ self.table.weight.t()


@pytest.mark.parametrize("part", [WithPositions, Attending, Tied])
def test_what_depends_on_neighbours_or_is_read_elsewhere_is_no_table(part):
    torch.manual_seed(0)
    found = folded(nn.Sequential(part(), nn.Linear(30 if part is Tied else 8, 1)), ids(4, 6, below=30))
    assert not [each for each in found.folds if each.kind == "serving table"]


def test_a_table_larger_than_what_it_replaces_is_named_and_left():
    torch.manual_seed(0)
    low_rank = nn.Sequential(nn.Embedding(500, 4), nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 64)))
    found = folded(nn.Sequential(low_rank, nn.Tanh(), nn.Linear(64, 1)), ids(4, 6, below=500))
    assert not found.folds
    assert "answers to all 500 ids take 32,000 numbers, it has 2,340" in found.kept["0"]


def test_an_encoder_with_hooks_stays():
    torch.manual_seed(0)
    model = nn.Sequential(ItemEncoder(30), nn.Linear(8, 1))
    model[0].of_text[0].register_forward_hook(lambda *_: None)
    assert not folded(model, ids(4, 1, below=30)).folds


class OfLength(nn.Module):
    """Divides by the number of rows that it is told: linear in every input, another matrix for every length."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return torch.tanh((x @ self.w @ self.w.t()) / x.shape[1])


class Narrow(nn.Module):
    """Two products through two numbers: cheaper than one matrix."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.randn(2, 8))

    def forward(self, x):
        return x @ self.a @ self.b


class Gated(nn.Module):
    """The product of two linear answers is not linear."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return (x @ self.w) * (x @ self.w.t())


@pytest.mark.parametrize(
    ("part", "width", "why"),
    [(OfLength, 6, "other sides"), (Narrow, 8, "64 multiply-adds a row, its steps take 32"), (Gated, 6, None)],
)
def test_steps_that_are_no_cheaper_matrix_stay(part, width, why):
    torch.manual_seed(0)
    found = folded(nn.Sequential(part(), nn.Linear(width, 1)), torch.randn(4, 5, width))
    assert not found.folds
    assert why is None or why in found.kept["0"]


def test_a_dictionary_that_two_blocks_share_stays():
    torch.manual_seed(0)
    first, second = ISTA(8), ISTA(8)
    second.dictionary = first.dictionary
    found = folded(nn.Sequential(first, nn.LayerNorm(8), second), torch.randn(4, 8))
    assert not found.folds


def test_a_scale_a_shift_and_a_difference_are_steps_too():
    torch.manual_seed(0)

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.scale = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))

        def forward(self, x):
            return 1.0 - F.linear(torch.matmul(x, self.w) * self.scale / 2.0 - x, self.w, self.scale)

    found = folded(nn.Sequential(Steps(), nn.Tanh()), torch.randn(4, 6))
    assert [each.kind for each in found.folds] == ["linear steps"]
