"""Probabilities over a large vocabulary as a few draws from them: on disk at most 30 bytes a token, unbiased.

p ──cumulated──►  |--id 7--|-|------id 12------|---|      points (u + 0 .. n-1) / n, one u a token
                    ^    ^    ^    ^    ^    ^
An id takes n p points in the mean over u, and never one more or less than that rounded up or down. So counts / n is an
unbiased estimate of p, of a variance below that of n independent draws; and what is linear in p, as the gradient of
cross-entropy is, is unbiased too. Ids are stored sorted, repeats and all, in as many bits as the vocabulary needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import ConfigError
from lessen.stored.bits import pack, unpack
from lessen.train.device import to_device
from lessen.train.nested import tensors_of
from lessen.train.output_cache import OutputCache, row_keys
from lessen.train.taps import OUTPUT, Outputs
from lessen.train.teachers import Forward, Teacher

DRAWS = "draws"
PACKED = "packed"
SIZE = "vocabulary"
TOKEN_BYTES = 30
"""What a token may take on disk."""
ROWS = 64


def draws(logits: Tensor, count: int, uniform: Tensor) -> Tensor:
    """Return ids drawn from softmax(logits), int64 [rows, count], sorted; each stands for a probability 1 / count.

    Args:
        logits: [rows, classes].
        uniform: float64 [rows], one number in [0, 1) each.
    """
    found = torch.empty(len(logits), count, dtype=torch.int64, device=logits.device)
    steps = torch.arange(count, dtype=torch.float64, device=logits.device)
    for start in range(0, len(logits), ROWS):
        rows = slice(start, start + ROWS)
        mass = logits[rows].float().softmax(dim=1).double().cumsum(dim=1)
        points = (uniform[rows, None].to(logits.device) + steps) / count * mass[:, -1:]
        found[rows] = torch.searchsorted(mass, points, right=True)
    return found.clamp_(max=logits.shape[1] - 1)


def token_bytes(count: int, vocabulary: int) -> int:
    """Return the bytes of a token's draws."""
    width = id_bits(vocabulary)
    return count * (width // 8) + -(-count * (width % 8) // 8)


def id_bits(vocabulary: int) -> int:
    """Return the bits of an id, at least 8."""
    return max(8, (vocabulary - 1).bit_length())


def packed(ids: Tensor, vocabulary: int) -> Tensor:
    """Return ids, int64 [..., count], as bytes, uint8 [..., token_bytes(count, vocabulary)]: their low bytes, the next
    ones, and the bits above these."""
    width = id_bits(vocabulary)
    planes = [(ids >> shift & 255).to(torch.uint8) for shift in range(0, width - 7, 8)]
    if width % 8:
        planes.append(pack((ids >> (width - width % 8)).to(torch.uint8), width % 8))
    return torch.cat(planes, dim=-1)


def unpacked(values: Tensor, count: int, vocabulary: int) -> Tensor:
    """Return the ids that `packed` was given."""
    width = id_bits(vocabulary)
    ids = torch.zeros(*values.shape[:-1], count, dtype=torch.int64, device=values.device)
    for plane in range(width // 8):
        ids |= values[..., plane * count : (plane + 1) * count].long() << (8 * plane)
    if width % 8:
        high = unpack(values[..., width // 8 * count :], width % 8, count)
        ids |= high.long() << (width - width % 8)
    return ids


class SampledTeacher(Teacher):
    """A teacher of which only draws are kept: `DRAWS` int64 [B, T, count] and `SIZE` int64 [B], the vocabulary.

    Args:
        count: draws a token.
        temperature: divides the teacher's logits before drawing.
        generator: draws.

    Raises:
        ConfigError, ArtifactError: see `Teacher`.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        count: int,
        temperature: float,
        generator: torch.Generator,
        cache: OutputCache | None = None,
    ) -> None:
        self.count, self.temperature, self.generator = count, temperature, generator
        super().__init__(model, forward, cache=cache)

    def _names(self) -> Sequence[str]:
        return [f"{self.count} draws a token at temperature {self.temperature}"]

    def __call__(self, batch: Any) -> Outputs:
        """Return the draws for a batch, on its device.

        Raises:
            NonFiniteError: the teacher gave NaN or infinity.
            ConfigError: a token's draws would take more than 30 bytes.
            DataError: rows shall be cached and the batch does not tell them apart.
        """
        if self.cache is None:
            return self._drawn(batch)
        keys = row_keys(batch)
        found = self.cache.find(keys)
        if found is not None:
            size = int(found[SIZE][0])
            made = {DRAWS: unpacked(found[PACKED], self.count, size), SIZE: found[SIZE].long()}
        else:
            made = self._drawn(batch)
            size = int(made[SIZE][0])
            taken = token_bytes(self.count, size)
            if taken > TOKEN_BYTES:
                raise ConfigError(
                    f"{self.count} draws from {size:,} tokens take {taken} bytes a token, more than {TOKEN_BYTES}; "
                    "draw fewer"
                )
            self.cache.add(keys, {PACKED: packed(made[DRAWS].cpu(), size), SIZE: made[SIZE].int()})
        device = next((tensor.device for tensor in tensors_of(batch)), torch.device("cpu"))
        return {name: to_device(tensor, device) for name, tensor in made.items()}

    def _drawn(self, batch: Any) -> Outputs:
        logits = self.ask(batch)[OUTPUT]
        rows, tokens, size = logits.shape
        uniform = torch.rand(rows * tokens, dtype=torch.float64, generator=self.generator)
        ids = draws(logits.flatten(0, 1) / self.temperature, self.count, uniform)
        return {DRAWS: ids.view(rows, tokens, self.count), SIZE: torch.full((rows,), size, device=logits.device)}
