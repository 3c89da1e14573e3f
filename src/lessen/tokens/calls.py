"""Which state belongs to which tokens. State is the call's and not the model's: threads and recomputation do not mix.

block k gives tokens  --remember-->  storage of the tokens -> (k, state)
block k+1 gets tokens --recall--->   by their storage, wherever and whenever it runs (checkpointed blocks run again
                                     in the backward pass); moved tokens: what block k of this thread gave last
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef  # torch gives its methods no types

from lessen.errors import InputError
from lessen.tokens.state import TokenState
from lessen.tokens.traced import Asked


class Calls:
    """The states of the forwards that are under way, and the last one of each thread."""

    def __init__(self) -> None:
        self.traced: tuple[int, TokenState] | None = None
        """While a model is traced there is one call, and storages cannot be named."""
        self.asked = Asked()
        """What a traced model was asked to hide."""
        self._known: dict[int, tuple[StorageWeakRef, int, TokenState]] = {}
        self._lock = threading.Lock()
        self._own = threading.local()

    def __deepcopy__(self, memo: dict[int, Any]) -> Calls:
        """Return a new one: a copied model has no calls under way."""
        return Calls()

    def __reduce__(self) -> tuple[type[Calls], tuple[()]]:
        """Calls do not travel."""
        return Calls, ()

    def remember(self, x: Tensor, layer: int, state: TokenState, *, last: bool = False) -> None:
        """Note that block `layer` gave tokens `x`, which are in `state`; after the `last` block nobody asks again."""
        if torch.compiler.is_compiling():
            self.traced = layer, state
            return
        self.traced = None
        self._own.newest = layer, state
        if last:
            self._own.finished = state
        key = None if last else _storage(x)
        with self._lock:
            for known in list(self._known):
                if self._known[known][0].expired():  # type: ignore[no-untyped-call]
                    del self._known[known]
            if key is not None:
                self._known[key.cdata] = key, layer, state

    def recall(self, x: Tensor, layer: int) -> TokenState:
        """Return the state of the tokens `x` that block `layer` is given.

        Raises:
            InputError: nobody knows them: the blocks before it were not run.
        """
        if torch.compiler.is_compiling() and self.traced is not None:
            return self.traced[1]
        key = _storage(x)
        if key is not None:
            with self._lock:
                found = self._known.get(key.cdata)
            if found is not None and not found[0].expired() and found[1] == layer - 1:  # type: ignore[no-untyped-call]
                return found[2]
        newest = self._newest()
        if newest is not None and newest[0] == layer - 1:
            return newest[1]
        raise InputError(f"block {layer} was given tokens that block {layer - 1} did not give; run the blocks in order")

    def newest(self) -> TokenState | None:
        """Return what the block that ran last in this thread gave, or None before any."""
        newest = self._newest()
        return None if newest is None else newest[1]

    def finished(self) -> TokenState | None:
        """Return the state at the end of this thread's last call, or None before the first."""
        if self.traced is not None:
            return self.traced[1]
        state: TokenState | None = getattr(self._own, "finished", None)
        return state

    def _newest(self) -> tuple[int, TokenState] | None:
        own: tuple[int, TokenState] | None = getattr(self._own, "newest", None)
        return self.traced or own


def _storage(x: Tensor) -> StorageWeakRef | None:
    try:
        return StorageWeakRef(x.untyped_storage())  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError):  # tensors of functorch have none
        return None
