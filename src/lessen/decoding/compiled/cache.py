"""The cache that compiled passes write and read: one block of memory a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from lessen.decoding.compiled.attention import CHUNK, Heads


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

    def reserve(self, places: int) -> None:
        """Make room for so many places, and for a quarter more where it was too little."""
        if places > self.room:
            before, self.states = self.states, self._empty(places + places // 4)
            self.states[:, :, :, : self.length] = before[:, :, :, : self.length]
