"""Drawn networks that are told ids and lengths answer as before on ids, lengths and batches that the fold never saw."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lessen.folding.run import fold

ROWS, WIDTH = 12, 6
OF_IDS = {
    "as they are": lambda ids: ids,
    "wrapped": lambda ids: ids % ROWS,
    "cut off": lambda ids: ids.clamp(0, ROWS - 1),
    "shared by two": lambda ids: ids // 2,
    "shifted": lambda ids: ids + 1,
    "as words": lambda ids: ids.int(),
}
OF_ROWS = {
    "nothing": lambda _self, x, _ids: x,
    "layers": lambda self, x, _ids: self.layers(x),
    "scale": lambda self, x, _ids: x * self.row,
    "unit length": lambda _self, x, _ids: F.normalize(x, dim=-1),
    "a second table": lambda self, x, ids: x + self.second(ids % 9),
    "raw rows": lambda self, x, ids: x + self.raw[ids.long()],
    "places": lambda self, x, _ids: x + self.raw[: x.shape[1]],
    "neighbours": lambda _self, x, _ids: x - x.mean(1, keepdim=True),
    "counts": lambda _self, x, ids: x * (ids[:, :, None] == ids[:, None]).double().sum(-1, keepdim=True),
    "over its input": lambda _self, x, _ids: x[..., :3].mul_(2.0).repeat(1, 1, 2),
    "half": lambda _self, x, _ids: x.float().to(x.dtype),
    "length": lambda _self, x, _ids: x / x.shape[1],
    "padding": lambda self, x, ids: x * (ids != self.table.padding_idx)[..., None],
}  # fmt: skip


class Encoder(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH, padding_idx=draw.choice([None, 0]))
        self.second, self.raw = nn.Embedding(9, WIDTH), nn.Parameter(torch.randn(ROWS, WIDTH))
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(inplace=draw.random() < 0.5), nn.Linear(2 * WIDTH, WIDTH)
        )
        self.row = nn.Parameter(torch.randn(WIDTH))
        self.of_ids = draw.choices(list(OF_IDS), [8, 1, 1, 1, 1, 1])[0]
        steps = [name for name in OF_ROWS if name != "padding" or self.table.padding_idx is not None]
        self.steps = draw.sample(steps, draw.randint(1, 2))

    def forward(self, ids, scale=1.0):
        ids = OF_IDS[self.of_ids](ids)
        x = self.table(ids)
        for name in self.steps:
            x = OF_ROWS[name](self, x, ids)
        return x * scale


class Places(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.length = nn.Parameter(torch.randn(ROWS, WIDTH)), 0

    def forward(self, length=None):
        return self.rows[: self.length if length is None else length]


class Drawn(nn.Module):
    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        self.encoder, self.places, self.place = Encoder(draw), Places(), nn.Embedding(ROWS, WIDTH)
        self.register_buffer("numbers", torch.arange(ROWS)[None])
        self.after = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(), nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.head = nn.Linear(WIDTH, 3)
        self.kind = draw.choice(["", "", "", "by keyword", "by state", "by numbers", "scaled"])

    def forward(self, ids):
        x = self.after(self.encoder(ids, scale=1.0 / ids.shape[1]) if self.kind == "scaled" else self.encoder(ids))
        self.places.length = ids.shape[1]
        if self.kind == "by keyword":
            x = x + self.places(length=ids.shape[1])
        elif self.kind == "by state":
            x = x + self.places()
        elif self.kind == "by numbers":
            x = x + self.place(self.numbers[:, : ids.shape[1]])
        return self.head(torch.tanh(x))


def answer(model, ids):
    try:
        with torch.no_grad():
            return model(ids.clone())
    except (IndexError, RuntimeError):
        return None


def check(seeds):
    kinds = Counter()
    for seed in seeds:
        torch.manual_seed(seed)
        model = Drawn(seed).double().eval()
        draw = torch.Generator().manual_seed(seed)
        most = 2 * ROWS if model.encoder.of_ids == "shared by two" else ROWS - 1
        given = torch.randint(1, most, (seed % 3 + 1, seed % 4 + 1), generator=draw)
        kept = given.clone()
        found = fold(model, [((given,), {})], torch.Generator().manual_seed(1))
        assert torch.equal(given, kept)
        kinds.update(each.kind for each in found.folds)
        fresh = [torch.randint(0, most, sides, generator=draw) for sides in [(2, 5), (4, 2), (1, 1), (1, 9)]]
        for ids in [*fresh, torch.full((2, 3), most), torch.full((1, 2), -1), torch.full((1, 2), 3 * ROWS)]:
            before, after = answer(model, ids), answer(found.model, ids)
            said = (seed, model.encoder.of_ids, model.encoder.steps, model.kind, ids.shape, found.folds)
            assert (before is None) == (after is None), said
            if before is not None:
                assert before.shape == after.shape, said
                assert float((before - after).abs().max()) <= 1e-10 * float(before.abs().max() + 1), said
    return kinds


def test_drawn_networks_answer_as_before_on_what_the_fold_never_saw():
    kinds = check(range(80))
    assert kinds["serving table"] > 10


@pytest.mark.slow
def test_a_thousand_drawn_networks_answer_as_before_on_what_the_fold_never_saw():
    check(range(1000))
