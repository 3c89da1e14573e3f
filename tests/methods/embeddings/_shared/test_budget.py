from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from lessen.errors import BudgetError
from lessen.methods import builtin_methods
from lessen.methods.embeddings._shared.budget import share_out, table_bytes
from lessen.recipe import Recipe
from lessen.testing.toys import TableTask


class WithFirstOrder(nn.Module):
    """Tables of very different sizes beside first-order weights, which no method touches."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(1500, 12)
        self.tags = nn.EmbeddingBag(1200, 24, mode="sum")
        self.first = nn.Embedding(1500, 1)
        self.last = nn.Linear(36, 1)

    def forward(self, items, tags):
        joined = torch.cat([self.items(items), self.tags(tags)], dim=1)
        return (self.last(joined) + self.first(items))[:, 0]


class Task(TableTask):
    def build(self):
        return WithFirstOrder()


def shared(steps):
    """Return a small first training for the methods that search."""
    return {"search_epochs": 1} if "search_epochs" in steps.model_fields else {}


QUICK = (
    "emb-qr",
    "emb-cce",
    "emb-dpq",
    "emb-pq-post",
    "emb-low-rank",
    "emb-half",
    "emb-mixed-bits",
    "emb-hash",
    "emb-tt",
)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("share", [0.9, 0.02])
def test_a_share_is_met_or_the_nearest_is_named_and_can_be_asked_for(name, share):
    task, cls = Task(), builtin_methods()[name]
    torch.manual_seed(0)
    model = task.build().eval()
    try:
        small, _ = Recipe([cls(share=share)]).apply(model, task)
    except BudgetError as error:
        named = re.search(r"nearest it can reach is ([0-9.]+)$", str(error))
        assert named, str(error)
        share = float(named.group(1))
        small, _ = Recipe([cls(share=share)]).apply(model, task)
    assert table_bytes(small) == pytest.approx(share * table_bytes(model), rel=0.02)


def test_what_one_table_cannot_take_the_others_get():
    limits = [(10, 40), (0, 100)]

    def make(number, aim):
        low, high = limits[number]
        return min(max(aim, low), high)

    assert share_out([100, 100], [30, 30], 1, make, lambda _, made: made) == [30, 30]
    assert share_out([100, 100], [60, 60], 1, make, lambda _, made: made) == [40, 80]
    assert share_out([100, 100], [7, 7], 1, make, lambda _, made: made) == [10, 4]


def test_a_share_that_is_not_used_keeps_the_hash_of_published_results():
    low_rank, half = builtin_methods()["emb-low-rank"], builtin_methods()["emb-half"]
    assert Recipe([low_rank(rank=8)]).hash == "44c5f0ee954e"
    assert Recipe([half()]).hash == "4c430a00717a"
    assert Recipe([half(share=0.5)]).hash != "4c430a00717a"
