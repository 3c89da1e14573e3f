"""Unpadded passes over several sequences (EMS-SD, arXiv 2405.07542) for any model with exchangeable attention.

Sequences that add different numbers of tokens share one forward pass. Their new tokens lie in one flat row list, so
dense layers spend nothing on padding; every sequence has its own cache tensors and its own length; only attention
runs sequence by sequence.

    sequence a: 3 cached, 2 new   ┐  tokens    a3 a4 b7      ┌ attention of a3 a4 over a0..a4
    sequence b: 7 cached, 1 new   ┘  positions  3  4  7   ->  └ attention of b7    over b0..b7

The model is not changed: while a pass runs, its configuration names an attention function registered here, and a
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
from torch.nn.functional import scaled_dot_product_attention

from lessen.architectures.loading import hugging_face
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


class _Pass:
    """One forward pass: the stand-in cache that a model writes to, and the attention over what was written."""

    is_compileable = False

    def __init__(self, work: Sequence[tuple[SequenceCache, Sequence[int]]]) -> None:
        self.pieces: list[_Piece] = []
        start = 0
        for cache, tokens in work:
            self.pieces.append(_Piece(cache, start, len(tokens), cache.length))
            start += len(tokens)
        self._written: list[tuple[Tensor, Tensor]] = []
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def get_seq_length(self, *_: Any) -> int:
        """Return 0: positions are given explicitly and no mask is built from the length."""
        return 0

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the flat keys and values (1, kv heads, rows, width) of one layer, each sequence in its own place."""
        self._written = []
        for piece in self.pieces:
            rows = slice(piece.start, piece.start + piece.new)
            self._written.append(piece.cache.write(layer_idx, keys[0, :, rows], values[0, :, rows]))
        return keys, values

    def attend(self, query: Tensor, scale: float | None, window: int | None) -> Tensor:
        """Return attention of the flat query (1, heads, rows, width) as (1, rows, heads, width)."""
        outputs = [
            self._attend_one(number, query[0, :, piece.start : piece.start + piece.new], scale, window)
            for number, piece in enumerate(self.pieces)
        ]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0)

    def _attend_one(self, number: int, query: Tensor, scale: float | None, window: int | None) -> Tensor:
        piece, (keys, values) = self.pieces[number], self._written[number]
        heads, new, width = query.shape
        groups = heads // keys.shape[0]
        total = piece.before + new
        narrow = window is not None and total > window
        if piece.before == 0 and new > 1 and not narrow:
            out = scaled_dot_product_attention(
                query[None], keys[None], values[None], scale=scale, is_causal=True, enable_gqa=groups > 1
            )
            return out[0].transpose(0, 1)
        # Queries that share a key head are stacked as rows, so that keys need not be repeated.
        mask = self._mask(number, groups, window if narrow else None, query) if new > 1 or narrow else None
        stacked = query.reshape(1, keys.shape[0], groups * new, width)
        out = scaled_dot_product_attention(stacked, keys[None], values[None], attn_mask=mask, scale=scale)
        return out.reshape(heads, new, values.shape[2]).transpose(0, 1)

    def _mask(self, number: int, groups: int, window: int | None, like: Tensor) -> Tensor:
        """Return 0 where a new token may look and -inf elsewhere, (groups * new, total); made once a pass."""
        key = (number, groups, window)
        if key not in self._masks:
            piece = self.pieces[number]
            places = torch.arange(piece.before + piece.new, device=like.device)
            query_places = places[piece.before :, None]
            hidden = places[None, :] > query_places
            if window is not None:
                hidden |= places[None, :] <= query_places - window
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self._masks[key] = mask.masked_fill_(hidden, float("-inf")).repeat(groups, 1)
        return self._masks[key]


_ACTIVE: ContextVar[_Pass | None] = ContextVar("lessen_ragged_pass", default=None)


def _ragged_attention(
    _module: Any, query: Tensor, _key: Tensor, _value: Tensor, _mask: Any, scaling: float | None = None, **extras: Any
) -> tuple[Tensor, None]:
    for name in ("softcap", "s_aux", "position_bias"):
        if extras.get(name) is not None:
            raise InputError(f"unpadded attention does not know the model's {name!r}")
    active = _ACTIVE.get()
    if active is None:
        raise InputError(f"the attention function {_NAME!r} works only inside lessen's decoder")
    return active.attend(query, scaling, extras.get("sliding_window")), None


class RaggedEngine:
    """Runs unpadded passes through a Hugging Face causal language model whose attention function can be exchanged."""

    batched = True

    def __init__(self, model: Any) -> None:
        hugging_face().AttentionInterface.register(_NAME, _ragged_attention)
        self._model = model
        self._keeps_rows = model._supports_logits_to_keep()

    def new_cache(self, reserve: int = 0) -> SequenceCache:
        """Return an empty cache with room for `reserve` tokens."""
        return SequenceCache(reserve)

    def cut(self, cache: SequenceCache, length: int) -> None:
        """Forget all but the first `length` tokens; what lies behind is overwritten later."""
        cache.length = min(length, cache.length)

    @torch.inference_mode()
    def run(self, work: Sequence[tuple[SequenceCache, Sequence[int]]], last_only: bool = False) -> Tensor:
        """Add the new tokens of every sequence to its cache; return logits (rows, vocabulary), float32.

        Rows are in the order of `work`; with `last_only` there is one row a sequence, that of its last token.
        """
        device = self._model.device
        plan = _Pass(work)
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

    def _forward(self, plan: _Pass, tokens: Tensor, places: Tensor, keep: dict[str, Tensor]) -> Tensor:
        config = self._model.config
        before, token = config._attn_implementation, _ACTIVE.set(plan)
        config._attn_implementation = _NAME
        try:
            output = self._model(
                input_ids=tokens, position_ids=places, past_key_values=plan, use_cache=True, return_dict=True, **keep
            )
        finally:
            config._attn_implementation = before
            _ACTIVE.reset(token)
        logits: Tensor = output.logits[0]
        return logits
