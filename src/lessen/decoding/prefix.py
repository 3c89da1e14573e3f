"""What the full-precision model holds of the tokens that all texts start with (IntactKV, arXiv 2403.01241).

ids [P]  ->  keys and values of each layer at positions 0 ... P-1, rotated already, and the logits of those positions

A quantised model that continues from them errs less: the first tokens draw most attention, and their states, with a
few very large values, lose most by quantisation. They are valid in front of a text only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lessen.architectures.context import context_of
from lessen.architectures.loading import hugging_face
from lessen.decoding.kv_layout import windows_of
from lessen.decoding.view import cache_argument
from lessen.errors import InputError


@dataclass(frozen=True)
class Prefix:
    """The states of the first P tokens of every text."""

    ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values of each layer, [kv heads, P, width]."""
    logits: Tensor
    """[P, vocabulary]"""

    def fill(self, cache: Any, rows: int) -> None:
        """Write the states into an empty transformers cache, the same for each of `rows` texts."""
        for number, pair in enumerate(self.layers):
            keys, values = (part.expand(rows, *part.shape) for part in pair)
            cache.update(keys, values, number)


@torch.no_grad()
def prefix_of_model(model: Any, ids: Sequence[int]) -> Prefix:
    """Return what `model` itself holds of its first tokens, in the type that it computes in.

    Raises:
        InputError: no tokens, more than its context or its narrowest window takes, or a cache that is not known.
    """
    check_length(model, windows_of(model), len(ids))
    rows = model.config.get_text_config().vocab_size
    if min(ids) < 0 or max(ids) >= rows:
        wrong = next(token for token in ids if not 0 <= token < rows)
        raise InputError(f"the prefix holds the token {wrong}, and the model has {rows} rows")
    cache = hugging_face().DynamicCache(config=model.config.get_text_config(decoder=True))
    given = {cache_argument(model): cache, "use_cache": True, "return_dict": True}
    # the class's own forward: a model that is patched already answers as it would without
    output = type(model).forward(model, input_ids=torch.tensor([list(ids)], device=model.device), **given)
    layers = tuple((layer.keys[0].clone(), layer.values[0].clone()) for layer in cache.layers)
    return Prefix(tuple(ids), layers, output.logits[0].clone())


def check_length(model: Any, windows: Sequence[int | None], tokens: int) -> None:
    """Refuse a prefix that the model cannot hold whole. Raises InputError."""
    name, context = type(model).__name__, context_of(model.config)
    narrowest = min((window for window in windows if window is not None), default=None)
    if tokens < 1:
        raise InputError("the prefix is empty; give at least one token, such as the start-of-text token")
    if context is not None and tokens >= context:
        raise InputError(f"the prefix has {tokens} tokens; the context of {name} is {context}, shorten it")
    if narrowest is not None and tokens >= narrowest:
        raise InputError(
            f"the prefix has {tokens} tokens, and layers of {name} see a window of {narrowest}: it would be forgotten "
            f"before a text begins; give at most {narrowest - 1}"
        )
