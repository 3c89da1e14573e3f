"""Keys and values of one layer: the first tokens exact, then blocks in codes, then the newest tokens exact.

    0 ... exact | block | block | block | ... newest
    as made       codes, see `kv_codes`   as made: `residual` tokens and what fills no block yet

What one pass adds is seen exactly by that pass, and in codes by later ones, as soon as it is old enough. The attention
of a pass reads `read`; a kernel that attends to codes would take `keys` and `values` (each a `Coded`) in its place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lessen.decoding.kv_codes import Coded, Form, encode_keys, encode_values, run_of
from lessen.errors import InputError

Pair = tuple[Tensor, Tensor]


class States:
    """Keys and values [*, tokens, width] of one layer.

    Args:
        form: how old tokens are held.
        exact: first tokens that never become codes.
        window: tokens that a query sees, its own included, where the layer has such a bound; what lies before is
            forgotten as soon as a whole part is out of sight.
    """

    def __init__(self, form: Form, exact: int = 0, window: int | None = None) -> None:
        self.form, self.exact, self.window = form, exact, window
        self.gone = 0
        """Tokens forgotten because no query sees them any more."""
        self.first: Pair | None = None
        self.keys: Coded | None = None
        self.values: Coded | None = None
        self.tail: Pair | None = None
        self.dtype = torch.float32

    @property
    def length(self) -> int:
        """Tokens seen, forgotten ones included."""
        return self.gone + self.held

    @property
    def held(self) -> int:
        """Tokens that `read` gives."""
        return _tokens(self.first) + self._coded + _tokens(self.tail)

    @property
    def _coded(self) -> int:
        return 0 if self.keys is None else self.keys.blocks * self.form.group

    def add(self, keys: Tensor, values: Tensor) -> None:
        """Put new tokens [*, new, width] behind the others, as they are."""
        self.dtype = keys.dtype
        room = 0 if self._coded or self.tail or self.gone else self.exact - _tokens(self.first)
        if room > 0:
            self.first = _joined(self.first, (keys[..., :room, :], values[..., :room, :]))
        if keys.shape[-2] > room:
            self.tail = _joined(self.tail, (keys[..., max(0, room) :, :], values[..., max(0, room) :, :]))

    def read(self) -> Pair:
        """Return keys and values of all held tokens [*, held, width], in the type that the model made them in."""
        if self.keys is None or self.values is None:
            parts = [part for part in (self.first, self.tail) if part is not None]
            if len(parts) == 1:
                return parts[0]
            return torch.cat([part[0] for part in parts], -2), torch.cat([part[1] for part in parts], -2)
        return self._whole(self.keys, 0), self._whole(self.values, 1)

    def settle(self) -> None:
        """Turn into codes what is old enough, and forget what no query sees."""
        form, waiting = self.form, _tokens(self.tail)
        blocks = (waiting - form.residual) // form.group if form.coded else 0
        if blocks > 0 and self.tail is not None:
            count = blocks * form.group
            keys, values = (torch.unflatten(part[..., :count, :], -2, (blocks, form.group)) for part in self.tail)
            self.keys = _appended(self.keys, encode_keys(keys, form.bits))
            run = run_of(values.shape[-1], form.group)
            self.values = _appended(self.values, encode_values(values, form.bits, run))
            self.tail = _own(self.tail, slice(count, None))
        if self.window is not None:
            self._forget(self.length - self.window + 1)

    def until_codes(self) -> int | None:
        """Return how many tokens a pass may add after `settle` so that each sees what it would alone; None: any."""
        if not self.form.coded:
            return None
        form, waiting = self.form, _tokens(self.tail)
        full = form.residual + form.group
        settled = waiting if waiting < full else form.residual + (waiting - form.residual) % form.group
        missing = 0 if self._coded or waiting else max(0, self.exact - _tokens(self.first))
        return missing + full - settled

    def cut(self, length: int) -> None:
        """Forget all but the first `length` tokens. Tokens of a block that is cut stay what their codes say.

        Raises:
            InputError: tokens that are needed again were forgotten before, because no query saw them.
        """
        if length >= self.length:
            return
        seen = 0 if self.window is None else max(0, length - self.window + 1)
        if self.gone > seen:
            raise InputError(f"the cache forgot the first {self.gone} tokens and cannot be cut to {length} of them")
        left = length - self.gone
        if left < _tokens(self.first):
            self.first = _own(self.first, slice(0, left)) if left else None
            self.keys = self.values = self.tail = None
            return
        left -= _tokens(self.first)
        if left >= self._coded:
            kept = left - self._coded
            self.tail = _own(self.tail, slice(0, kept)) if kept else None
            return
        blocks, inside = divmod(left, self.form.group)
        start = _tokens(self.first) + blocks * self.form.group
        self.tail = _own(self.read(), slice(start, start + inside)) if inside else None
        self.keys, self.values = (_blocks(part, slice(0, blocks)) for part in (self.keys, self.values))

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Put `function` of each tensor in its place; it acts on leading dimensions only (beams, copies of rows)."""
        for name in ("first", "tail"):
            pair = getattr(self, name)
            if pair is not None:
                setattr(self, name, tuple(function(part) for part in pair))
        for name in ("keys", "values"):
            coded = getattr(self, name)
            if coded is not None:
                codes, scales, minimums = (function(part) for part in coded.tensors())
                setattr(self, name, coded.of((codes, scales, minimums)))

    def _whole(self, coded: Coded, side: int) -> Tensor:
        """Return keys (side 0) or values (1) of all held tokens, codes decoded into their place between the exact."""
        first, coded_tokens = _tokens(self.first), self._coded
        out = coded.codes.new_empty((*coded.codes.shape[:-3], self.held, coded.width), dtype=torch.float32)
        middle = out[..., first : first + coded_tokens, :]
        coded.decode(torch.unflatten(middle, -2, (coded.blocks, self.form.group)))
        if self.first is not None:
            out[..., :first, :] = self.first[side]
        if self.tail is not None:
            out[..., first + coded_tokens :, :] = self.tail[side]
        return out.to(self.dtype)

    def _forget(self, unseen: int) -> None:
        """Drop parts that lie before token `unseen`: the first tokens, then blocks, then single tokens."""
        if self.first is not None and self.gone + _tokens(self.first) <= unseen:
            self.gone, self.first = self.gone + _tokens(self.first), None
        if self.first is not None:
            return
        blocks = min(max(0, unseen - self.gone), self._coded) // self.form.group
        if blocks:
            self.gone += blocks * self.form.group
            self.keys, self.values = (_blocks(part, slice(blocks, None)) for part in (self.keys, self.values))
        if self.keys is None and unseen > self.gone and self.tail is not None:
            count = min(unseen - self.gone, _tokens(self.tail))
            self.gone += count
            self.tail = _own(self.tail, slice(count, None))


def _tokens(pair: Pair | None) -> int:
    return 0 if pair is None else pair[0].shape[-2]


def _joined(before: Pair | None, new: Pair) -> Pair:
    """Return two runs of tokens as one, in memory of its own."""
    if before is None:
        return _cloned(new[0]), _cloned(new[1])
    return torch.cat([before[0], new[0]], -2), torch.cat([before[1], new[1]], -2)


def _own(pair: Pair | None, tokens: slice) -> Pair:
    """Return some tokens in memory of their own, so that the memory of the others can be freed."""
    assert pair is not None
    return _cloned(pair[0][..., tokens, :]), _cloned(pair[1][..., tokens, :])


def _cloned(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _appended(before: Coded | None, new: Coded) -> Coded:
    if before is None:
        return new
    parts = zip(before.tensors(), new.tensors(), strict=True)
    codes, scales, minimums = (torch.cat(part, -3) for part in parts)
    return new.of((codes, scales, minimums))


def _blocks(coded: Coded | None, blocks: slice) -> Coded | None:
    """Return some blocks in memory of their own, or None for none."""
    assert coded is not None
    codes, scales, minimums = (_cloned(part[..., blocks, :, :]) for part in coded.tensors())
    return coded.of((codes, scales, minimums)) if codes.shape[-3] else None


def held_bytes(cache: object) -> int:
    """Return the bytes of memory behind the tensors of a cache of any kind, each piece of memory once.

    Looks into lists, tuples, dictionaries and attributes, so that whatever a cache keeps is counted.
    """
    found: dict[int, int] = {}
    seen: set[int] = set()
    left: list[object] = [cache]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, (list, tuple)):
            left.extend(value)
        elif isinstance(value, dict):
            left.extend(value.values())
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            left.extend(vars(value).values())
    return sum(found.values())
