"""Rotations of hidden states that cost n (a + b + c) multiply-adds in place of n^2, and the layers that make them.

    O x = (F_1 (x) F_2 (x) ... ) (signs * x)        small orthonormal factors, Hadamard wherever the size allows

576 = 16 * 36 and 1536 = 32 * 4 * 12: sizes that are no power of two take a Hadamard matrix of Paley's (orders q + 1 and
2 (q + 1), q prime); where none is known (an odd part of 13) that factor is a cosine transform.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lessen.stored import checks
from lessen.stored.base import StoredModule, stored
from lessen.stored.linears.changed_input import ChangedInput

LARGEST_POWER = 32
"""Largest power of two that one factor takes."""


# -- factors ---------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=64)
def factors(size: int) -> tuple[Tensor, ...]:
    """Return orthonormal matrices, float64, whose Kronecker product is [size, size]."""
    power = size & -size
    odd = size // power
    found: list[Tensor] = []
    if odd > 1:
        paley = _paley(4 * odd) if power >= 4 else None
        if paley is not None:
            power //= 4
            found.append(paley / math.sqrt(4 * odd))
        else:
            found.append(_cosines(odd))
    while power > 1:
        part = min(power, LARGEST_POWER)
        found.insert(0, _sylvester(part) / math.sqrt(part))
        power //= part
    return tuple(found) or (torch.ones(1, 1, dtype=torch.float64),)


def _sylvester(size: int) -> Tensor:
    made = torch.ones(1, 1, dtype=torch.float64)
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while len(made) < size:
        made = torch.kron(two, made)
    return made


def _paley(order: int) -> Tensor | None:
    """Return a Hadamard matrix, float64 of +-1, or None where Paley's constructions give none for primes."""
    first, second = order - 1, order // 2 - 1
    if first % 4 == 3 and _prime(first):
        core = _characters(first)
        border = torch.zeros(order, order, dtype=torch.float64)
        border[0, 1:], border[1:, 0], border[1:, 1:] = 1, -1, core
        return border + torch.eye(order, dtype=torch.float64)
    if second % 4 == 1 and _prime(second):
        border = torch.zeros(order // 2, order // 2, dtype=torch.float64)
        border[0, 1:], border[1:, 0], border[1:, 1:] = 1, 1, _characters(second)
        cross = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        own = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(border, cross) + torch.kron(torch.eye(order // 2, dtype=torch.float64), own)
    return None


def _characters(prime: int) -> Tensor:
    """Return whether i - j is a square, [prime, prime] of 1, -1 and 0 on the diagonal."""
    squares = {number * number % prime for number in range(1, prime)}
    row = torch.tensor([0.0] + [1.0 if n in squares else -1.0 for n in range(1, prime)], dtype=torch.float64)
    index = torch.arange(prime)
    return row[(index[:, None] - index[None, :]) % prime]


def _prime(number: int) -> bool:
    return number > 1 and all(number % small for small in range(2, math.isqrt(number) + 1))


def _cosines(size: int) -> Tensor:
    """Return the orthonormal cosine transform (DCT-II), float64 [size, size]."""
    index = torch.arange(size, dtype=torch.float64)
    made = torch.cos(math.pi / size * (index[None, :] + 0.5) * index[:, None]) * math.sqrt(2 / size)
    made[0] /= math.sqrt(2)
    return made


# -- rotating --------------------------------------------------------------------------------------------------------
def rotate(values: Tensor, signs: Tensor) -> Tensor:
    """Return O x for each row x of float [*, n]; signs [n] of +-1."""
    return _product(values * signs.to(values.dtype), False)


def rotate_back(values: Tensor, signs: Tensor) -> Tensor:
    """Return O^T x for each row x of float [*, n]."""
    return _product(values, True) * signs.to(values.dtype)


def _product(values: Tensor, transposed: bool) -> Tensor:
    shape = values.shape
    left, right = 1, shape[-1]
    for factor in factors(shape[-1]):
        size = len(factor)
        right //= size
        matrix = (factor.t() if transposed else factor).to(values)
        parts = values.reshape(-1, left, size, right)
        values = torch.einsum("ij,bljr->blir", matrix, parts)
        left *= size
    return values.reshape(shape)


def draw_signs(size: int, generator: torch.Generator) -> Tensor:
    """Return signs, int8 [size] of +-1."""
    return (2 * torch.randint(0, 2, (size,), generator=generator) - 1).to(torch.int8)


# -- stored modules --------------------------------------------------------------------------------------------------
@stored
class RotatedInput(ChangedInput):
    """y = layer(O x). State: `signs` int8 [in], and `layer`, an `nn.Linear` or a compact form of it."""

    kind = "rotated-input"
    signs: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("signs", torch.ones(self.in_features, dtype=torch.int8))

    @classmethod
    def around(cls, layer: nn.Linear, signs: Tensor) -> RotatedInput:
        """Return `layer`, whose columns are rotated already, behind the rotation of its inputs."""
        made = cls.holding(layer)
        made.signs = signs.to(layer.weight.device)
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Map [*, in] to [*, out]."""
        result: Tensor = self.layer(rotate(input, self.signs))
        return result

    def dequantise(self) -> Tensor:
        """Return the dense weight [out, in], float32, that takes inputs as they come."""
        return rotate_back(self.dense(), self.signs)

    def check_values(self) -> None:
        """Refuse signs that are no signs. Raises ValueError."""
        _check_signs(self.signs)


@stored
class RotatedNorm(StoredModule):
    """RMS norm of a rotated stream x' = O x: gain * O^T x' / rms, rotated again where its reader is. State: `gain`
    float32 [width], `signs` int8 [width].
    """

    kind = "rotated-norm"
    gain: Tensor
    signs: Tensor

    def __init__(self, width: int, eps: float, again: bool) -> None:
        super().__init__()
        self.width = checks.whole("width", width, 1, 2**24)
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < 1:
            raise ValueError(f"eps must lie between 0 and 1, found {eps!r}")
        self.eps, self.again = float(eps), bool(checks.one_of("again", again, (True, False)))
        self.register_buffer("gain", torch.ones(self.width))
        self.register_buffer("signs", torch.ones(self.width, dtype=torch.int8))

    def config(self) -> dict[str, Any]:
        """Return width, eps, and whether outputs are rotated."""
        return {"width": self.width, "eps": self.eps, "again": self.again}

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [*, width] to the same."""
        wide = hidden.float()
        wide = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        straight = rotate_back(wide, self.signs) * self.gain
        return (rotate(straight, self.signs) if self.again else straight).to(hidden.dtype)

    def check_values(self) -> None:
        """Refuse signs that are no signs, and a gain that is not finite. Raises ValueError."""
        _check_signs(self.signs)
        if not bool(torch.isfinite(self.gain).all()):
            raise ValueError("gain holds NaN or infinity")


def _check_signs(signs: Tensor) -> None:
    if not bool((signs.abs() == 1).all()):
        raise ValueError("signs hold other values than 1 and -1")
