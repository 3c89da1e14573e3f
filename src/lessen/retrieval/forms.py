"""What an index is asked to hold, in one line: `bits1+int8`, `pq:groups=48`, `pca:kept=128+int8`.

[truncate:kept=N | pca:kept=N +] flat | int8 | bits4 | bits2 | bits1 | pq:groups=N [+ int8 | flat]

The first part makes vectors shorter, the second is searched whole, the third orders the best of it again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lessen.errors import ConfigError
from lessen.stored.vectors.flat import FlatVectors, Int8Vectors
from lessen.stored.vectors.index import VectorIndex
from lessen.stored.vectors.product import ProductVectors
from lessen.stored.vectors.rotated import RotatedVectors
from lessen.stored.vectors.staged import Reduction, StagedVectors

REDUCTIONS, FINE = ("truncate", "pca"), ("int8", "flat")
COARSE = ("flat", "int8", "bits4", "bits2", "bits1", "pq")
GRAMMAR = (
    "[truncate:kept=N | pca:kept=N +] flat | int8 | bits4 | bits2 | bits1 | pq:groups=N [+ int8 | flat], "
    "such as int8, bits1+int8 or pca:kept=128+pq:groups=32+int8"
)


@dataclass(frozen=True)
class Form:
    """Stages of an index, by name and number."""

    coarse: str
    number: int | None = None
    """Groups of product codes."""
    fine: str | None = None
    reduction: str | None = None
    kept: int = 0
    widen: int = 10
    """Candidates that the fine stage orders, for each that is asked for."""

    @property
    def learns(self) -> bool:
        """Whether it looks at a sample of vectors."""
        return self.coarse not in ("flat", "int8") or self.reduction == "pca"

    def fitted(self, sample: Tensor, seed: int = 0) -> StagedVectors:
        """Return an index without rows that learned what it needs from a sample of vectors, float [n, dim].

        Raises:
            ConfigError: the form does not fit vectors of this width.
        """
        dim = sample.shape[1]
        reduction, seen = None, sample
        if self.reduction is not None:
            if self.kept > dim:
                raise ConfigError(f"{self.reduction}:kept={self.kept} is more than the {dim} numbers of a vector")
            pca = self.reduction == "pca"
            reduction = Reduction.principal(sample, self.kept) if pca else Reduction(dim, self.kept, False)
            seen = reduction(sample)
        try:
            coarse = _stage(self.coarse, self.number, seen, seed)
        except ValueError as error:
            raise ConfigError(f"pq:groups={self.number}: {error}") from error
        fine = None if self.fine is None else _stage(self.fine, None, torch.zeros(0, dim), seed)
        return StagedVectors.around(coarse, fine, reduction, self.widen)


def parse_form(text: str, widen: int = 10) -> Form:
    """Read a form. Raises ConfigError with the grammar."""
    parts = [part.strip() for part in text.split("+")]
    reduction, kept, coarse, fine = None, 0, None, None
    try:
        name, number = _number(parts[0])
        if name in REDUCTIONS:
            reduction, kept = name, number or 0
            if kept < 1:
                raise ValueError
            parts = parts[1:] or ["flat"]
            name, number = _number(parts[0])
        coarse = name
        rest = parts[1:]
        fine = rest[0] if rest else None
        whole = coarse in COARSE and (number is not None) == (coarse == "pq") and len(rest) < 2
        if not whole or (fine is not None and fine not in FINE) or (number is not None and number < 1):
            raise ValueError
    except (ValueError, IndexError) as error:
        raise ConfigError(f"the form {text!r} is not understood: {GRAMMAR}") from error
    return Form(coarse, number, fine, reduction, kept, widen)


def _number(part: str) -> tuple[str, int | None]:
    name, colon, said = part.partition(":")
    key, equals, value = said.partition("=")
    if colon and (not equals or key != {"pq": "groups"}.get(name, "kept") or name not in ("pq", *REDUCTIONS)):
        raise ValueError
    return name, int(value) if colon else None


def _stage(name: str, number: int | None, sample: Tensor, seed: int) -> VectorIndex:
    if name == "flat":
        return FlatVectors.fitted(sample)
    if name == "int8":
        return Int8Vectors.fitted(sample)
    if name == "pq":
        return ProductVectors.fitted(sample, seed, groups=number)
    return RotatedVectors.fitted(sample, seed, bits=int(name.removeprefix("bits")))
