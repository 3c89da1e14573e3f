"""The caches that compiled passes write and read: one block of memory a sequence, and one more where old tokens are
codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lessen.decoding.compiled.codes import Records, codes_for
from lessen.decoding.compiled.layout import CHUNK, PLACE, Heads
from lessen.decoding.kv_codes import Form


class ContiguousCache:
    """Keys and values of one sequence, float32 [layers, 2, key heads, room, width]; cutting only changes `length`."""

    def __init__(self, layers: int, heads: Heads, reserve: int = 0) -> None:
        self.length = 0
        self._shape = layers, heads.keys, heads.width
        self.states = self._empty(max(reserve, 1))

    def _empty(self, places: int) -> Tensor:
        layers, heads, width = self._shape
        room = -(-places // CHUNK) * CHUNK
        return torch.empty(layers, 2, heads, room, width, dtype=torch.float32, device="cpu")

    @property
    def room(self) -> int:
        """Places that there is room for."""
        return self.states.shape[3]

    @property
    def held(self) -> int:
        """Tokens of which states are held as floats."""
        return self.length

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store states [key heads, new, width] behind the others; `length` is set when every layer has them."""
        self._reserve(self.held + keys.shape[1])
        for side, states in enumerate((keys, values)):
            self.states[layer, side, :, self.held : self.held + keys.shape[1]] = states

    def places(self, count: int) -> Tensor:
        """Make room for new tokens; return where they stand, int64 [count, numbers of `PLACE`]."""
        self._reserve(self.held + count)
        found = torch.zeros(count, len(PLACE), dtype=torch.int64)
        found[:, 0] = torch.arange(self.length, self.length + count)
        found[:, 1] = torch.arange(self.held, self.held + count)
        found[:, 2], found[:, 3] = self.states.data_ptr(), self.room
        return found

    def added(self, count: int) -> None:
        """Count the tokens of a pass."""
        self.length += count

    def cut(self, length: int) -> None:
        """Forget all but the first tokens."""
        self.length = min(self.length, length)

    def reach(self) -> int | None:
        """Return how many tokens the next pass may add; None: any."""
        return None

    def _reserve(self, places: int) -> None:
        """Make room for so many places, and for a quarter more where it was too little."""
        if places > self.room:
            self._move(places + places // 4)

    def _move(self, places: int) -> None:
        before, self.states = self.states, self._empty(places)
        self.states[:, :, :, : self.held] = before[:, :, :, : self.held]


class CodedCache(ContiguousCache):
    """The first `exact` tokens and the newest as floats side by side, what lies between as records of codes.

    codes: uint8 [layers, key heads, room for blocks, bytes of a block], of which `blocks` are there. What turns into
    codes, and when, is as `kv_states.States` has it: between passes, never within one; a prompt at once.
    """

    def __init__(self, layers: int, heads: Heads, form: Form, exact: int) -> None:
        super().__init__(layers, heads, exact + form.residual + 2 * form.group)
        self.form, self.exact, self.blocks = form, exact, 0
        self.start = 0
        """Tokens before the prompt's own: those of a prefix."""
        self._records = Records(codes_for(form, heads))
        self.codes = torch.empty(layers, heads.keys, 0, self._records.codes.bytes, dtype=torch.uint8)

    @property
    def held(self) -> int:
        """Tokens of which states are held as floats."""
        return self.length - self._coded

    @property
    def _coded(self) -> int:
        return self.blocks * self.form.group

    @property
    def _waiting(self) -> int:
        """Tokens as floats that may become codes."""
        return max(0, self.held - self.exact)

    def places(self, count: int) -> Tensor:
        """Make room for new tokens and return where they stand; older ones turn into codes first."""
        self._settle()
        found = super().places(count)
        found[:, 4], found[:, 5], found[:, 6] = self.codes.data_ptr(), self.blocks, self.codes.shape[2]
        return found

    def added(self, count: int) -> None:
        """Count the tokens of a pass; those of a prompt are certain, and turn into codes."""
        prompt = self.length == self.start
        super().added(count)
        if prompt:
            self._settle()

    def reach(self) -> int | None:
        """Return how many tokens a pass may add so that each sees what it would alone; None: any (a prompt)."""
        if self.length == 0:
            return None
        form, waiting = self.form, self._waiting
        full = form.residual + form.group
        settled = waiting if waiting < full else form.residual + (waiting - form.residual) % form.group
        return max(0, self.exact - self.held) + full - settled

    def cut(self, length: int) -> None:
        """Forget all but the first tokens. Tokens of a block that is cut stay what their codes say."""
        if length >= self.length:
            return
        left = max(0, length - self.exact)
        blocks, inside = divmod(left, self.form.group)
        if blocks < self.blocks:
            keys, values = self._records.decoded(self.codes[:, :, blocks])
            self.blocks = blocks
            for side, states in enumerate((keys, values)):
                self.states[:, side, :, self.exact : self.exact + inside] = states[:, :, :inside]
        self.length = length

    def _settle(self) -> None:
        """Turn into codes what is old enough, a layer at a time."""
        group = self.form.group
        new = (self._waiting - self.form.residual) // group
        if new < 1:
            return
        if self.blocks + new > self.codes.shape[2]:
            room = self.blocks + new + max(8, (self.blocks + new) // 16)
            before = self.codes
            self.codes = before.new_empty(*before.shape[:2], room, before.shape[3])
            self.codes[:, :, : self.blocks] = before[:, :, : self.blocks]
        first, end = self.exact, self.exact + new * group
        for layer, states in enumerate(self.states):
            keys, values = (side[:, first:end].unflatten(1, (new, group)) for side in states)
            self.codes[layer, :, self.blocks : self.blocks + new] = self._records.encoded(keys, values)
        left = self.states[:, :, :, end : self.held].clone()
        self.blocks += new
        self.states[:, :, :, first : self.held] = left
        if self.room > 2 * (self.held + group) + CHUNK:
            self._move(self.held + group)
