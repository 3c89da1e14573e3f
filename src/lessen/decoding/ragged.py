"""Unpadded passes over several sequences (EMS-SD, arXiv 2405.07542) for any model with exchangeable attention.

Sequences that add different numbers of tokens share one forward pass. Their new tokens lie in one flat row list, so
dense layers spend nothing on padding; every sequence has its own cache tensors and its own length; only attention
runs sequence by sequence.

    sequence a: 3 cached, 2 new   ┐  tokens    a3 a4 b7      ┌ attention of a3 a4 over a0..a4
    sequence b: 7 cached, 1 new   ┘  positions  3  4  7   ->  └ attention of b7    over b0..b7

The model is not changed: a view of it (`lessen.decoding.view`) names an attention function registered here, and a
stand-in cache stores the new keys and values. The official code launches its kernel twice to fill the cache; here keys
are written before they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lessen.architectures.loading import hugging_face
from lessen.decoding.attention import (
    BLOCK,
    Rule,
    attend,
    attend_as_the_model,
    attend_in_blocks,
    mask_of,
    own_arguments,
    rule_in_place_of_mask,
    rule_of,
)
from lessen.decoding.view import cache_argument, shared_view
from lessen.errors import InputError

_NAME = "lessen_ragged"
_ROOM = 64


class SequenceCache:
    """Keys and values of one sequence, each (kv heads, capacity, width) a layer; cutting only changes `length`."""

    def __init__(self, reserve: int = 0) -> None:
        self.length = 0
        self._reserve = reserve
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (kv heads, new, width) behind the cached tokens and return views of all (kv heads, length, width)."""
        end = self.length + keys.shape[1]
        stored = self._layers.get(layer)
        if stored is None or stored[0].shape[1] < end:
            stored = self._layers[layer] = self._grown(stored, keys, values, max(end, self._reserve))
        stored[0][:, self.length : end] = keys
        stored[1][:, self.length : end] = values
        return stored[0][:, :end], stored[1][:, :end]

    def _grown(
        self, stored: tuple[Tensor, Tensor] | None, keys: Tensor, values: Tensor, end: int
    ) -> tuple[Tensor, Tensor]:
        capacity = end + max(_ROOM, end // 4) if stored is not None else end + _ROOM
        new = tuple(state.new_empty(state.shape[0], capacity, state.shape[2]) for state in (keys, values))
        if stored is not None:
            for target, source in zip(new, stored, strict=True):
                target[:, : self.length] = source[:, : self.length]
        return new[0], new[1]


@dataclass(frozen=True)
class _Piece:
    """Rows `start` to `start + new` of the flat input belong to one sequence that has `before` cached tokens."""

    cache: SequenceCache
    start: int
    new: int
    before: int


class RaggedPass:
    """One forward pass: the stand-in cache that a model writes to, and the attention over what was written."""

    is_compileable = False

    def __init__(self, work: Sequence[tuple[SequenceCache, Sequence[int]]], implementation: str) -> None:
        self.pieces: list[_Piece] = []
        start = 0
        for cache, tokens in work:
            self.pieces.append(_Piece(cache, start, len(tokens), cache.length))
            start += len(tokens)
        self._implementation = implementation
        self._flat: Tensor | None = None
        self._written: list[tuple[Tensor, Tensor]] = []
        self._masks: dict[tuple[int, Rule, int], Tensor | None] = {}

    def get_seq_length(self, *_: Any) -> int:
        """Return 0: positions are given explicitly."""
        return 0

    def get_query_offset(self, *_: Any) -> int:
        """Return 0; see `get_seq_length`."""
        return 0

    def get_mask_sizes(self, length: Any, *_: Any) -> tuple[int, int]:
        """Return the sizes of a mask over the flat rows; the rule is kept in its place."""
        return (length if isinstance(length, int) else len(length)), 0

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the flat keys and values (1, kv heads, rows, width) of one layer, each sequence in its own place."""
        self._flat = keys
        self.store(layer_idx, keys[0], values[0])
        return keys, values

    def store(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store keys and values (kv heads, rows, width) of one layer; `over_pieces` then attends to them."""
        self._written = []
        for piece in self.pieces:
            rows = slice(piece.start, piece.start + piece.new)
            self._written.append(piece.cache.write(layer, keys[:, rows], values[:, rows]))

    def attend(
        self, module: Any, query: Tensor, key: Tensor, mask: Any, scale: float | None, extras: dict[str, Any]
    ) -> Tensor:
        """Return attention of the flat query (1, heads, rows, width) as (1, rows, heads, width)."""
        if self._flat is None or key.data_ptr() != self._flat.data_ptr() or key.shape != self._flat.shape:
            raise InputError(f"{type(module).__name__} attends to other keys than it has just cached")
        rule, own = rule_of(mask, extras), own_arguments(extras)
        if not own:
            return self.over_pieces(query[0], rule, scale).unsqueeze(0)
        outputs = []
        for number, piece in enumerate(self.pieces):
            states = (query[0, :, piece.start : piece.start + piece.new], *self._written[number])
            allowed, given = rule.allowed(*self._places(number, query.device)), own | {"scaling": scale}
            outputs.append(attend_as_the_model(module, self._implementation, states, allowed, given))
        return torch.cat(outputs).unsqueeze(0)

    def over_pieces(self, query: Tensor, rule: Rule, scale: float | None) -> Tensor:
        """Return attention of queries (heads, rows, width), each sequence over its own, as (rows, heads, width)."""
        outputs = [
            self._attend_one(number, (query[:, piece.start : piece.start + piece.new], *written), rule, scale)
            for number, (piece, written) in enumerate(zip(self.pieces, self._written, strict=True))
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_one(
        self, number: int, states: tuple[Tensor, Tensor, Tensor], rule: Rule, scale: float | None
    ) -> Tensor:
        piece, (query, keys, _) = self.pieces[number], states
        key = (number, rule, query.shape[0] // keys.shape[0])
        if key not in self._masks:  # the same for all layers
            allowed = self._needed(number, rule, query.device)
            if allowed is not None and piece.new <= BLOCK:
                allowed = mask_of(allowed, query, keys)
            self._masks[key] = allowed
        mask = self._masks[key]
        if mask is None:
            return attend(*states, None, scale, causal=True)
        if piece.new > BLOCK:
            return attend_in_blocks(*states, rule, scale)
        return attend(*states, mask, scale)

    def _places(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        piece = self.pieces[number]
        places = torch.arange(piece.before + piece.new, device=device)
        return places[piece.before :], places

    def _needed(self, number: int, rule: Rule, device: torch.device) -> Tensor | None:
        """Return what each query may look at, or None where that is everything up to its own place."""
        piece = self.pieces[number]
        queries, keys = self._places(number, device)
        last = rule.allowed(queries[-1:], keys)
        if (piece.new == 1 or piece.before == 0) and bool(last.all()):
            return None
        return last if piece.new > BLOCK else rule.allowed(queries, keys)


_ACTIVE: ContextVar[RaggedPass | None] = ContextVar("lessen_ragged_pass", default=None)


def _ragged_attention(
    module: Any, query: Tensor, key: Tensor, _value: Tensor, mask: Any, scaling: float | None = None, **extras: Any
) -> tuple[Tensor, None]:
    active = _ACTIVE.get()
    if active is None:
        raise InputError(f"the attention function {_NAME!r} works only inside lessen's decoder")
    return active.attend(module, query, key, mask, scaling, extras), None


class RaggedEngine:
    """Runs unpadded passes through a Hugging Face causal language model whose attention function can be exchanged."""

    batched = True

    def __init__(self, model: Any) -> None:
        transformers = hugging_face()
        transformers.AttentionInterface.register(_NAME, _ragged_attention)
        transformers.AttentionMaskInterface.register(_NAME, rule_in_place_of_mask)
        self.view = shared_view(model, _NAME)
        self._implementation = model.config._attn_implementation or "eager"
        self._keeps_rows = model._supports_logits_to_keep()
        self._cache_argument = cache_argument(model)

    def new_cache(self, reserve: int = 0) -> SequenceCache:
        """Return an empty cache with room for `reserve` tokens."""
        return SequenceCache(reserve)

    def cut(self, cache: SequenceCache, length: int) -> None:
        """Forget all but the first `length` tokens; what lies behind is overwritten later."""
        cache.length = min(length, cache.length)

    def reach(self, cache: SequenceCache) -> int | None:  # noqa: ARG002 - see `Engine`
        """Return None: a pass may be of any length."""
        return None

    @torch.inference_mode()
    def run(self, work: Sequence[tuple[SequenceCache, Sequence[int]]], last_only: bool = False) -> Tensor:
        """Add the new tokens of every sequence to its cache; return logits (rows, vocabulary), float32.

        Rows are in the order of `work`; with `last_only` there is one row a sequence, that of its last token.
        """
        device = self.view.device
        plan = RaggedPass(work, self._implementation)
        flat = [token for _, tokens in work for token in tokens]
        places = [piece.before + step for piece in plan.pieces for step in range(piece.new)]
        last = torch.tensor([piece.start + piece.new - 1 for piece in plan.pieces], device=device)
        keep = {"logits_to_keep": last} if last_only and self._keeps_rows else {}
        logits = self._forward(plan, torch.tensor([flat], device=device), torch.tensor([places], device=device), keep)
        for piece in plan.pieces:
            piece.cache.length += piece.new
        if last_only and not self._keeps_rows:
            logits = logits[last]
        return logits.float()

    def _forward(self, plan: RaggedPass, tokens: Tensor, places: Tensor, keep: dict[str, Tensor]) -> Tensor:
        token = _ACTIVE.set(plan)
        given: dict[str, Any] = {self._cache_argument: plan, **keep}
        try:
            output = self.view(input_ids=tokens, position_ids=places, use_cache=True, return_dict=True, **given)
        finally:
            _ACTIVE.reset(token)
        logits: Tensor = output.logits[0]
        return logits
