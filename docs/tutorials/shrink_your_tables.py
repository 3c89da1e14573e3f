"""# Shrink the tables of your model

Where the bytes of a model's embedding tables are, what each method would leave of them, and the same model at a tenth
of the bytes: profile, ask for a share, compare, save, load, serve.
"""

# %% [markdown]
# The model and the data are yours: plain `nn.Embedding` and `nn.EmbeddingBag`. Here users click on items whose style
# they like, and a bag holds what they clicked before.

import tempfile
from pathlib import Path

import torch
from torch import nn

import lessen
from lessen.errors import BudgetError


class Clicks(nn.Module):
    def __init__(self):
        super().__init__()
        self.items = nn.Embedding(20_000, 16)
        self.history = nn.EmbeddingBag(20_000, 16, mode="mean")
        self.score = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, item, history):
        return self.score(torch.cat([self.items(item), self.history(history)], dim=1))[:, 0]


draw = torch.Generator().manual_seed(0)
items = (20_000 * torch.rand(30_000, 6, generator=draw) ** 8).long()  # a few items are read often, most hardly ever
style = torch.randn(20_000, generator=draw)
likes = style[items[:, 0]] * style[items[:, 1:]].mean(dim=1)
clicks = (torch.rand(30_000, generator=draw) < torch.sigmoid(6 * likes)).float()

# %% [markdown]
# Fifteen lines of Task say where the batches are and what judges the model.


class MyClicks(lessen.Task):
    name = "my-clicks"
    metrics = {"auc": lessen.AUC}
    settings = lessen.FitSettings(epochs=3, learning_rate=0.01)
    parts = {"train": slice(0, 22_000), "validation": slice(22_000, 25_000), "test": slice(25_000, 30_000)}

    def build(self):
        return Clicks()

    def batches(self, split, seed=0):
        rows = torch.arange(30_000)[self.parts[split]]
        return (((items[part, 0], items[part, 1:]), clicks[part]) for part in rows.split(500))

    def loss(self, model, batch):
        return nn.functional.binary_cross_entropy_with_logits(model(*batch[0]), batch[1])


task = MyClicks()
model = task.reference(seed=0)  # or override `reference` to return the model that you trained elsewhere

# %% [markdown]
# Where are the bytes, how often are the rows read, and what would each method leave? Nothing is trained for this.
# With the classes in a file of their own the command line does the same: `lessen profile --task my_clicks.py:MyClicks`;
# and for a class that is only a module, without any task: `lessen profile my_model.py:Clicks`.

print(lessen.profile(model, task))

# %% [markdown]
# Ask for a share of the tables' bytes. Every method takes the same knob and counts everything it stores.

for method in ("emb-pq-post", "emb-mixed-bits", "emb-prune-rows"):
    trade = lessen.compress(model, task, {method: {"share": 0.1}}, margin=0.01)
    print(f"{method:16}{trade.differences['auc'].value:+.4f}  {trade.verdict}")

# %% [markdown]
# A method that cannot get there says so before it trains, and names the nearest share that it can reach.

try:
    lessen.compress(model, task, {"emb-rowwise-quant": {"share": 0.1}}, margin=0.01)
except BudgetError as error:
    print(error)

# %% [markdown]
# Methods compose: drop the rows that nobody reads, then keep four bits of each value that is left.

steps = [{"emb-prune-rows": {"keep": 0.3, "index": "sorted"}}, {"emb-rowwise-quant": {"bits": 4}}]
trade = lessen.compress(model, task, steps, margin=0.01)
print(trade)

# %% [markdown]
# What is saved is what was measured: an ordinary module that needs neither the task nor the training code.

with tempfile.TemporaryDirectory() as folder:
    trade.save(Path(folder) / "small")
    small = lessen.load(Path(folder) / "small", model=Clicks())
assert torch.equal(small(items[:9, 0], items[:9, 1:]), trade.model(items[:9, 0], items[:9, 1:]))
print(small.items, small.history, sep="\n")
