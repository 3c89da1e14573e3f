"""A forward that reads a layer's weight: the layer is left alone by name, or one line names it; before any training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lessen
from lessen.architectures.direct_reads import direct_reads
from lessen.errors import InputError, NothingMatchedError
from lessen.method import Context
from lessen.methods.sites import find


class Recommender(nn.Module):
    """Scores candidates by reading the table, as SASRec and GRU4Rec do."""

    def __init__(self, read):
        super().__init__()
        self.items, self.inner = nn.Embedding(500, 16), nn.Linear(16, 16)
        self.read = read

    def forward(self, history, candidate):
        return (self.inner(self.items(history).mean(dim=1)) * self.read(self)[candidate]).sum(dim=1)


class Plain(Recommender):
    def forward(self, history, candidate):
        return (self.inner(self.items(history).mean(dim=1)) * self.items.weight[candidate]).sum(dim=1)


class InMethod(Recommender):
    def score(self, taste, candidate):
        return (taste * self.items.weight[candidate]).sum(dim=1)

    def forward(self, history, candidate):
        return self.score(self.inner(self.items(history).mean(dim=1)), candidate)


class InParent(nn.Module):
    def __init__(self):
        super().__init__()
        self.core = Recommender(None)
        self.layers = nn.ModuleList([nn.Linear(16, 16)])

    def forward(this, history, candidate):
        taste = this.core.inner(this.core.items(history).mean(dim=1))
        return ((taste @ this.layers[0].weight) * this.core.items.weight[candidate]).sum(dim=1)


class OnlyAtTheStart(Recommender):
    def __init__(self):
        super().__init__(None)
        nn.init.xavier_normal_(self.items.weight)

    def forward(self, history, candidate):
        return (self.inner(self.items(history).mean(dim=1)) * self.items(candidate)).sum(dim=1)


def names(model):
    paths = {module: path for path, module in model.named_modules()}
    return {paths[module]: reader for module, reader in direct_reads(model).items()}


def test_reads_are_found_where_they_are_written():
    assert names(Plain(None)) == {"items": "Plain"}
    assert names(InMethod(None)) == {"items": "InMethod"}
    assert names(InParent()) == {"core.items": "InParent", "layers.0": "InParent"}
    assert names(OnlyAtTheStart()) == {}


class Next(lessen.Task):
    name = "next-item"
    metrics = {"auc": lessen.AUC}
    settings = lessen.FitSettings(epochs=1)
    draw = torch.Generator().manual_seed(0)
    history = torch.randint(1, 500, (600, 6), generator=draw)
    candidate = torch.randint(1, 500, (600,), generator=draw)
    click = ((history.sum(1) + candidate) % 2).float()
    parts = {"train": slice(0, 200), "validation": slice(200, 400), "test": slice(400, 600)}

    def build(self):
        return Plain(None)

    def batches(self, split, seed=0):
        part = self.parts[split]
        return [((self.history[part], self.candidate[part]), self.click[part])]

    def loss(self, model, batch):
        return nn.functional.binary_cross_entropy_with_logits(model(*batch[0]), batch[1])


@pytest.mark.parametrize("step", [{"emb-rowwise-quant": {"min_rows": 1}}, {"emb-prune-rows": {"keep": 0.5}}])
def test_the_only_table_is_refused_by_name(step):
    with pytest.raises(NothingMatchedError, match="items: the forward of Plain reads its weight directly"):
        lessen.compress(Plain(None), Next(), step, margin=0.1)


def test_other_layers_are_compressed_and_the_reason_is_kept():
    model, context = Plain(None), Context()
    assert [site.path for site in find(model, (nn.Linear, nn.Embedding), context)] == ["inner"]
    assert "reads its weight" in context.findings["skipped"]["items"]


def test_a_read_that_no_source_shows_is_one_line_with_the_path():
    aliased = Recommender(lambda model: getattr(model.items, "weight"))  # noqa: B009 - hidden from the reader of sources
    with pytest.raises(InputError, match="items is a compact .* without a dense weight.*skip='items'") as caught:
        lessen.compress(aliased, Next(), {"emb-rowwise-quant": {"min_rows": 1}}, margin=0.1)
    assert "\n" not in str(caught.value)


def test_stored_layers_still_have_no_weight_to_ask_for():
    from lessen.stored.linears.int8_linear import Int8Linear

    layer = Int8Linear.from_dense(nn.Linear(4, 4))
    assert not hasattr(layer, "weight")
    assert getattr(layer, "weight", None) is None
    with pytest.raises(AttributeError, match="no attribute 'wait'"):
        layer.wait  # noqa: B018


def test_torch_own_layers_read_only_what_is_theirs():
    assert direct_reads(nn.Sequential(nn.Linear(2, 2), nn.TransformerEncoderLayer(4, 2, 4), nn.Conv2d(1, 1, 1))) == {}
