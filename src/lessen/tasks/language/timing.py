"""What a user of a language model waits for: a prompt that is read, and tokens that are written one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lessen.decoding.view import cache_argument
from lessen.train.device import device_of


@torch.no_grad()
def prefill(model: Any, ids: Tensor) -> Tensor:
    """Read a prompt int64 [1,T] and return the logits of the token after it, [1,V] where the model can give one."""
    return torch.as_tensor(model(input_ids=ids.to(device_of(model)), use_cache=True).logits[:, -1])


def decode(tokens: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """Return a call that writes `tokens` tokens greedily after a prompt int64 [1,T] that is read beforehand.

    Reading happens at a model's first call with a prompt and is kept; a caller that times makes warm-up calls with
    every prompt, so that only writing is timed (and the copy of the cache, which each call continues).
    """
    read: WeakKeyDictionary[nn.Module, dict[int, tuple[Any, Tensor]]] = WeakKeyDictionary()

    @torch.no_grad()
    def call(model: Any, ids: Tensor) -> Tensor:
        known, name = read.setdefault(model, {}), cache_argument(model)
        if id(ids) not in known:
            output = model(input_ids=ids.to(device_of(model)), use_cache=True)
            known[id(ids)] = (output[name], output.logits[:, -1:].argmax(dim=2))
        cache, token = known[id(ids)]
        cache = copy.deepcopy(cache)
        for _ in range(tokens):
            output = model(**{"input_ids": token, name: cache, "use_cache": True})
            token = output.logits[:, -1:].argmax(dim=2)
        return token

    return call
