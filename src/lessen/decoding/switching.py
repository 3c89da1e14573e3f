"""Models whose rotary frequencies depend on the longest position of a pass (longrope: Phi-3 128k, Phi-4-mini).

    positions of a pass   0 ... S-1        S ...
    frequencies           short            long        S: the length the model was first trained for

Plain decoding computes each token in a pass that ends at its own position. So here no draft crosses S, sequences on
both sides of S have passes of their own, and the class's own rule decides whether keys are computed again at S.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lessen.decoding.protocol import Engine
from lessen.decoding.view import cache_argument
from lessen.errors import InputError


@dataclass(frozen=True)
class Switch:
    """A pass uses other frequencies from position `place` on; `recompute`: keys of earlier positions are made anew."""

    place: int
    recompute: bool


@dataclass
class TrackedCache:
    """A cache with the tokens it holds, so that it can be computed again."""

    inner: Any
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens held."""
        return len(self.tokens)


def switch_of(model: Any, context: int | None) -> Switch | None:
    """Return where a model changes its frequencies within its context, or None where it does not.

    Raises:
        InputError: it changes them in a way that cannot be followed exactly.
    """
    name, places = type(model).__name__, set()
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if kind == "longrope":
                parameters = module.config.rope_parameters
                parameters = parameters if layer is None else parameters[layer]
                places.add(int(parameters["original_max_position_embeddings"]))
            elif isinstance(kind, str) and "dynamic" in kind:
                first = int(module.original_max_seq_len)
                if context is None or first < context:
                    raise InputError(
                        f"{name} changes its rotary frequencies at every position from {first} on (dynamic scaling); "
                        "its passes depend on one another and cannot be drafted"
                    )
    places = {place for place in places if context is None or place < context}
    if len(places) > 1:
        raise InputError(f"{name} changes its rotary frequencies at several places ({sorted(places)}); not supported")
    if not places:
        return None
    (place,) = places
    return Switch(place, _recomputes(model, place))


def _recomputes(model: Any, place: int) -> bool:
    """Ask the class whether plain decoding drops its cache when the text grows beyond the switch."""

    class Full:
        """Stands for a cache that holds all positions before the switch."""

        def get_seq_length(self, *_: Any) -> int:
            return place

        def __len__(self) -> int:
            return 1

    ids, cache = torch.zeros(1, place + 1, dtype=torch.long), Full()
    named = cache_argument(model)
    given = {named: cache, "attention_mask": None, "use_cache": True, "next_sequence_length": 1}
    try:
        prepared = model.prepare_inputs_for_generation(ids, **given)
    except (TypeError, AttributeError, ValueError, IndexError) as error:
        raise InputError(
            f"{type(model).__name__} does not say what its cache holds beyond position {place} ({error}); not supported"
        ) from error
    return prepared.get(named) is not cache


def switched_by_others(switch: Switch | None, lengths: Sequence[int], new: Sequence[int]) -> bool:
    """Tell whether `generate` on one batch would give a row the frequencies beyond the switch for a longer row's sake.

    Args:
        lengths: tokens of each prompt, padding apart.
        new: tokens that followed each.
    """
    if switch is None:
        return False
    from_step = max(0, switch.place - max(lengths) + 1)
    return any(from_step <= min(count - 1, switch.place - length) for length, count in zip(lengths, new, strict=True))


class SwitchingEngine:
    """Engine another engine so that each pass lies on one side of the switch."""

    def __init__(self, inner: Engine, switch: Switch) -> None:
        self.inner, self.switch, self.batched, self.view = inner, switch, inner.batched, inner.view
        self._lock = threading.Lock()  # a pass writes the frequencies that it then reads

    def new_cache(self, reserve: int = 0) -> TrackedCache:
        """Return an empty cache that knows its tokens."""
        return TrackedCache(self.inner.new_cache(reserve))

    def cut(self, cache: TrackedCache, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.inner.cut(cache.inner, length)
        del cache.tokens[length:]

    def reach(self, cache: TrackedCache) -> int | None:
        """Return how many tokens the next pass of a sequence may add; None where there is no bound."""
        left, inner = self.switch.place - cache.length, self.inner.reach(cache.inner)
        if left <= 0 or cache.length == 0:
            return inner
        return left if inner is None else min(left, inner)

    def run(self, work: Sequence[tuple[TrackedCache, Sequence[int]]], last_only: bool = False) -> Tensor:
        """Run the sequences before and beyond the switch in passes of their own; see `Engine`."""
        long = [cache.length + len(tokens) > self.switch.place for cache, tokens in work]
        parts: dict[int, Tensor] = {}
        for side in (False, True):
            chosen = [number for number, one in enumerate(long) if one is side]
            if chosen:
                rows = self._run_side([work[number] for number in chosen], last_only)
                parts |= dict(zip(chosen, rows, strict=True))
        return torch.cat([parts[number] for number in range(len(work))])

    def _run_side(self, work: Sequence[tuple[TrackedCache, Sequence[int]]], last_only: bool) -> list[Tensor]:
        """Return the logits of the new tokens of each sequence."""
        fed = []
        for cache, tokens in work:
            crossing = 0 < cache.length <= self.switch.place < cache.length + len(tokens)
            again = cache.tokens if crossing and self.switch.recompute else []
            if again:
                self.inner.cut(cache.inner, 0)
            fed.append((cache.inner, [*again, *tokens]))
        with self._lock:
            logits = self.inner.run(fed, last_only)
        found, start = [], 0
        for (cache, tokens), (_, all_tokens) in zip(work, fed, strict=True):
            rows = 1 if last_only else len(all_tokens)
            found.append(logits[start : start + rows][-len(tokens) :])
            start += rows
            cache.tokens += tokens
        return found
