"""# Write a method

A method is one frozen object whose fields are its knobs, a card that says what it is, and `apply`. `lessen new-method
NAME` writes this skeleton and its test row for you; here is what goes inside.
"""

# %% [markdown]
# The example rounds the weights of linear layers to a grid and stores them as bytes. What remains in the model must be
# a stored module: its state is its buffers, its configuration is JSON, and `from_config` builds an empty twin. Sizes
# are checked before anything is allocated, because an artifact may come from a stranger.

import torch
from pydantic import Field
from torch import nn

import lessen
from lessen.methods.sites import replace
from lessen.stored import checks
from lessen.stored.base import StoredModule, stored


@stored
class GridLinear(StoredModule):
    """A linear layer whose weights are bytes on one grid: weight = step * code."""

    kind = "tutorial.GridLinear"

    def __init__(self, in_features, out_features, bias):
        super().__init__()
        self.in_features = checks.whole("in_features", in_features, 1, 2**24)
        self.out_features = checks.whole("out_features", out_features, 1, 2**24)
        checks.elements("a weight", in_features, out_features)
        self.register_buffer("codes", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("step", torch.ones(()))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    def config(self):
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias is not None}

    def dequantise(self):
        return self.codes.float() * self.step

    def forward(self, x):
        return nn.functional.linear(x, self.dequantise(), self.bias)


# %% [markdown]
# The method finds what it acts on by module type, so that it works on any model. Nothing found is an error, never a
# silent no-op. `context.findings` goes to the step ledger of the report.


class Grid(lessen.ModuleMethod):
    """Round linear weights to a symmetric grid (an example, not a recommendation)."""

    card = lessen.Card(
        name="tutorial-grid",
        family="weights",
        summary="Linear weights become bytes on one grid per layer.",
        acts_on=(nn.Linear,),
        source="this tutorial",
    )
    levels: int = Field(127, ge=1, le=127, description="grid steps on each side of zero")

    def apply(self, model, task, context):
        for site in self.eligible(model, self.card.module_types, context):
            model = replace(model, site, self.rounded(site.module))
        return model

    def rounded(self, layer):
        small = GridLinear(layer.in_features, layer.out_features, layer.bias is not None)
        with torch.no_grad():
            small.step.fill_(layer.weight.abs().max().clamp(min=1e-12) / self.levels)
            small.codes.copy_((layer.weight / small.step).round())
            if layer.bias is not None:
                small.bias.copy_(layer.bias)
        return small


# %% [markdown]
# The contract is executable. This runs the battery that every built-in method passes: bad weights refused by name, the
# caller's model untouched, save and load equal bit for bit, the same result from the same seed, no byte claimed that is
# not freed.

from lessen.testing import check_method

check_method(Grid())

# %% [markdown]
# And it can be used like any other.

task = lessen.get_task("ctr-synthetic")
model = task.reference(seed=0)
print(lessen.compress(model, task, [Grid(levels=63)], margin=0.005))
