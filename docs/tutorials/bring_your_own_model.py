"""# Bring your own model

A plain `nn.Module` and fifteen lines of Task are enough to compress it, measure what that cost, save it, load it back
and compare. Nothing here touches lessen's reference models or YAML.
"""

# %% [markdown]
# The model is yours: two embedding tables and a small network. Nothing in it knows about lessen.

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import lessen


class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.users = nn.Embedding(5000, 16)
        self.items = nn.Embedding(2000, 16)
        self.hidden = nn.Linear(32, 32)
        self.out = nn.Linear(32, 1)

    def forward(self, ids):
        both = torch.cat([self.users(ids[:, 0]), self.items(ids[:, 1])], dim=1)
        return self.out(torch.relu(self.hidden(both)))[:, 0]


# %% [markdown]
# So are the data; here they are made up: a click depends on whether a user's taste and an item's style agree.

generator = np.random.default_rng(0)
ids = np.stack([generator.zipf(1.3, 40_000) % 5000, generator.zipf(1.3, 40_000) % 2000], axis=1)
taste, style = generator.normal(size=(5000, 2)), generator.normal(size=(2000, 2))
chance = 1 / (1 + np.exp(-2 * (taste[ids[:, 0]] * style[ids[:, 1]]).sum(axis=1)))
clicks = (generator.random(40_000) < chance).astype(np.float32)
ids, clicks = torch.from_numpy(ids), torch.from_numpy(clicks)

# %% [markdown]
# A Task says how to build the model, where the batches are, what the loss is, and which metrics judge it. The first
# metric is the one that early stopping and verdicts use.


class MyTask(lessen.Task):
    name = "my-clicks"
    metrics = {"auc": lessen.AUC, "logloss": lessen.LOGLOSS}
    parts = {"train": slice(0, 30_000), "validation": slice(30_000, 35_000), "test": slice(35_000, 40_000)}

    def build(self):
        return MyNet()

    def batches(self, split, seed=0):
        rows = torch.arange(40_000)[self.parts[split]]
        if split == "train":
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
        return ((ids[part], clicks[part]) for part in rows.split(500))

    def loss(self, model, batch):
        return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


task = MyTask()

# %% [markdown]
# Train the reference with the task's own loop, or override `reference()` to return a model that you trained elsewhere.

model = task.reference(seed=0)

# %% [markdown]
# What is worth a try, and in which order? `advise` knows where the bytes are, what the task gives, and forecasts what
# each recipe would leave without running it: `lessen advise FILE.py:MyNet --task FILE.py:MyTask`, on the command line.

from lessen.advice import advise

for line in advise(model, task, "stored_bytes<=0.5x").lines[:4]:
    print(f"{line.cost['stored_bytes']:>9,.0f} bytes  {line.recipe.name}: {line.reason}")

# %% [markdown]
# Compress a copy: prune the rows that matter least, then keep four bits a value. Your model is not changed.

trade = lessen.compress(
    model,
    task,
    [{"emb-prune-rows": {"keep": 0.5}}, {"emb-rowwise-quant": {"bits": 4, "min_rows": 1}}],
    margin=0.01,
)
print(trade)

# %% [markdown]
# The verdict is made from a paired bootstrap on the test examples, against the margin that you set.

print(trade.verdict)
assert trade.measurement.cost["stored_bytes"] < 0.2 * trade.measurement.reference["cost"]["stored_bytes"]

# %% [markdown]
# Save it as a folder without pickle, and load it back: every file is verified, and the outputs are those measured.

with tempfile.TemporaryDirectory() as folder:
    trade.save(Path(folder) / "small")
    again = lessen.load(Path(folder) / "small", model=MyNet())

batch = ids[:64]
assert torch.equal(again(batch), trade.model(batch))
print("loaded:", sum(tensor.nbytes for tensor in again.state_dict().values()), "bytes of tensors")
