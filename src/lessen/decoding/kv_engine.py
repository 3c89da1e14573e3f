"""Decoding with lessen's own engines when a patch of the model's cache is in place.

An engine is chosen and tried on the model without its patches. Caches are then made that hold codes, and sequences
start behind the stored prefix. Drafts stay exact to plain decoding with the same cache: what turns into codes does so
between passes, and no draft reaches beyond the next time (`reach`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lessen.decoding.kv_codes import Form
from lessen.decoding.kv_forward import CODES, patched, prefix_in
from lessen.decoding.kv_layout import windows_of
from lessen.decoding.kv_library import kept_cache
from lessen.decoding.kv_states import States
from lessen.decoding.prefix import Prefix
from lessen.decoding.ragged import SequenceCache
from lessen.decoding.switching import SwitchingEngine
from lessen.decoding.view import shared_view
from lessen.errors import InputError


def bare_of(model: Any) -> Any:
    """Return the model, or a view of it without patches of its cache."""
    return shared_view(model) if patched(model) else model


def keeping(engine: Any, model: Any) -> Any:
    """Return an engine that decodes as `model` is patched; the same one where it is not.

    Raises:
        InputError: a prefix in front of a model that changes its rotary frequencies within its context.
    """
    if not patched(model):
        return engine
    codes, prefix = model._modules.get(CODES), prefix_in(model)
    if isinstance(engine, SwitchingEngine):
        if prefix is not None:
            raise InputError(
                f"{type(model).__name__} changes its rotary frequencies at position {engine.switch.place}, where a "
                "stored prefix would no longer be its own; remove the prefix"
            )
        return SwitchingEngine(keeping(engine.inner, model), engine.switch)
    return KeptEngine(engine, codes, prefix, len(windows_of(model)))


class CodedCache(SequenceCache):
    """Keys and values of one sequence as `States`, [kv heads, tokens, width] a layer."""

    def __init__(self, form: Form, exact: int) -> None:
        super().__init__()
        self._form, self._exact = form, exact
        self.start = 0
        """Tokens before the prompt's own: those of a prefix."""
        self.states: dict[int, States] = {}

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new states [kv heads, new, width] and return those of all tokens, older ones decoded."""
        states = self.states.setdefault(layer, States(self._form, self._exact))
        states.cut(self.length)
        states.settle()  # what is here now is certain: drafts that were not taken have been cut
        states.add(keys, values)
        found = states.read()
        if self.length == self.start:
            states.settle()  # a prompt is certain at once, and its exact states need not be held for all layers
        return found

    def reach(self) -> int | None:
        """Return how many tokens the next pass may add."""
        states = self.states.get(0)
        if states is None:
            return None
        states.cut(self.length)
        return states.until_codes()


@dataclass
class _Sequence:
    """A cache of a sequence with a prefix; `fresh` until the text's first pass, which brings the prefix's ids."""

    cache: Any
    fresh: bool = True


class KeptEngine:
    """Runs another engine with caches in codes, a stored prefix, or both; see `Engine`.

    Raises:
        InputError: the engine keeps codes itself, and not of this form.
    """

    def __init__(self, inner: Any, codes: Any, prefix: Prefix | None, layers: int) -> None:
        self.inner, self.batched, self.view = inner, inner.batched, inner.view
        self.opening = () if prefix is None else prefix.ids
        self._prefix, self._layers = prefix, layers
        self._form: Form | None = codes.form if codes is not None and codes.form.coded else None
        self._exact = max(len(self.opening), 0 if codes is None else codes.first)
        self._itself = self._form is not None and hasattr(inner, "keep_codes")
        if self._itself:
            inner.keep_codes(self._form, self._exact)

    def new_cache(self, reserve: int = 0) -> Any:
        """Return the cache of one sequence, which holds the prefix where there is one."""
        cache = self._empty(reserve)
        if self._prefix is None:
            return cache
        if hasattr(cache, "write"):
            for number, (keys, values) in enumerate(self._prefix.layers):
                cache.write(number, keys, values)
            cache.length = len(self.opening)
            if hasattr(cache, "start"):
                cache.start = cache.length
        else:
            self._prefix.fill(cache, 1)
        return _Sequence(cache)

    def _empty(self, reserve: int) -> Any:
        plain = self.inner.new_cache(reserve)
        if self._form is None or self._itself:
            return plain
        if isinstance(plain, SequenceCache):
            return CodedCache(self._form, self._exact)
        return kept_cache([None] * self._layers, self._form, self._exact)

    def cut(self, cache: Any, length: int) -> None:
        """Forget all but the first `length` tokens. Raises InputError for a part of the prefix."""
        if not isinstance(cache, _Sequence):
            self.inner.cut(cache, length)
        elif length >= len(self.opening):
            self.inner.cut(cache.cache, length)
        elif length == 0:
            cache.cache, cache.fresh = self.new_cache().cache, True
        else:
            raise InputError(f"a sequence with a prefix of {len(self.opening)} tokens cannot be cut to {length}")

    def reach(self, cache: Any) -> int | None:
        """Return how many tokens the next pass may add before held states would have turned into codes."""
        own = cache.cache if isinstance(cache, _Sequence) else cache
        if isinstance(own, CodedCache):
            return own.reach()
        states = getattr(own.layers[0], "states", None) if getattr(own, "layers", None) else None
        if states is None or not states.held:
            bound: int | None = self.inner.reach(own)
            return bound
        return int(states.until_codes())

    def run(self, work: Sequence[tuple[Any, Sequence[int]]], last_only: bool = False) -> Tensor:
        """Run the sequences; logits of a prefix are the stored ones. Raises InputError for other first tokens."""
        if self._prefix is None:
            logits: Tensor = self.inner.run(work, last_only)
            return logits
        rest: list[tuple[Any, Sequence[int]]] = []
        stored: list[Tensor] = []
        for cache, tokens in work:
            rest.append((cache.cache, self._after_opening(tokens) if cache.fresh else tokens))
            stored.append(self._prefix.logits.float() if cache.fresh else self._prefix.logits[:0].float())
            cache.fresh = False
        filled = [each for each in rest if each[1]]
        found = iter(self.inner.run(filled, last_only).split([1 if last_only else len(t) for _, t in filled]))
        rows = []
        for (_, tokens), before in zip(rest, stored, strict=True):
            own = next(found) if tokens else before[:0]
            rows.append((own if tokens else before[-1:]) if last_only else torch.cat([before.to(own), own]))
        return torch.cat(rows)

    def _after_opening(self, tokens: Sequence[int]) -> Sequence[int]:
        count = len(self.opening)
        if tuple(tokens[:count]) != self.opening:
            raise InputError(
                f"a text starts with the tokens {list(tokens[:8])[:count]}, and the model's prefix cache was made for "
                f"texts that start with {list(self.opening[:8])}{' ...' if count > 8 else ''} ({count} in all); start "
                "it with them, or remove the patch"
            )
        return tokens[count:]
