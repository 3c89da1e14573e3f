"""# Fewer visual tokens, and what they cost

A language model that sees pictures reads 144 tokens of each here, as LLaVA reads 576. The task `vision-language-grid`
comes with a small LLaVA that was trained to answer about drawn pictures, so that what is lost has a number: location
questions need the one token that shows the place, others can do with several.
"""

# %% [markdown]
# The model is Hugging Face's class; every patch works on any other LLaVA that you load from a folder.

import torch

from lessen.methods.tokens.fastv import FastV
from lessen.methods.tokens.feather import Feather
from lessen.methods.tokens.random_tokens import RandomTokens
from lessen.recipe import Recipe
from lessen.tasks.multimodal.grid import GridOptions, GridTask

task = GridTask(GridOptions(about="stills", questions=20))
model = task.reference()
print(type(model).__name__, sum(p.numel() for p in model.parameters()), "parameters")

# %% [markdown]
# Each method at the same share of the decoder's multiply-adds. Random tokens are the control: a choice that does not
# beat them is not worth its cost.

found = {"whole": task.outcomes(model, "validation")}
for method in (Feather(macs=0.45), FastV(macs=0.45), RandomTokens(macs=0.45)):
    compact, (step,) = Recipe([method]).apply(model, task)
    found[method.card.name] = task.outcomes(compact, "validation")
    print(method.card.name, step.findings["tokens_by_layer"], f"{step.findings['prefill_macs_share']:.2f}")
for name, outcomes in found.items():
    location, every = (task.metrics[metric](outcomes) for metric in ("location", "right"))
    held = task.costs(outcomes)["kv_bytes"]
    print(f"{name:14} places {location:.2f}  all {every:.2f}  keys and values {held:.0f} bytes a token")

# %% [markdown]
# `generate` goes on behind a pruned prompt at the position where the whole one ended, and a patch comes out again.

batch = task.example_batch()
with torch.no_grad():
    words = compact.generate(**{k: v for k, v in batch.inputs.items() if k != "logits_to_keep"}, max_new_tokens=2)
print(words.shape)
