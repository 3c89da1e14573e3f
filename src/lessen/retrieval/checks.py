"""What vectors must be before an index takes them: of its width, finite, and with a direction where cosines count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lessen.errors import DataError, NonFiniteError

Metric = Literal["cosine", "dot"]

SQUARED = 1e-16
"""Length below which the squares of a vector's numbers lose precision in float32."""
LONGEST = 1e18
"""Length above which products of two vectors may leave float32, and a document would be found by no query."""


def checked(
    vectors: Tensor, dim: int, metric: Metric, names: Sequence[str] | None = None, what: str = "vectors"
) -> Tensor:
    """Return float32 vectors [n, dim] as an index holds them: of length 1 where cosines count.

    Raises:
        DataError: they are of another width, one is zero and cosines count, or too long and products do.
        NonFiniteError: one holds NaN or infinity.
    """
    if vectors.dim() != 2 or vectors.shape[1] != dim:
        width = vectors.shape[1] if vectors.dim() == 2 else list(vectors.shape)
        raise DataError(f"{what} are of width {width}; the index holds vectors of width {dim}")
    vectors = vectors.float()
    bad = ~torch.isfinite(vectors).all(dim=1)
    if bool(bad.any()):
        raise NonFiniteError(
            f"{what}: {_first(bad, names)} holds NaN or infinity ({int(bad.sum())} of {len(bad)} do); "
            "leave it out or encode it again"
        )
    if metric == "dot":
        long = ~(vectors.double().norm(dim=1) <= LONGEST)
        if bool(long.any()):
            raise DataError(
                f"{what}: {_first(long, names)} is longer than {LONGEST:.0e} ({int(long.sum())} of {len(long)} are), "
                "and its products would be beyond float32; scale the vectors"
            )
        return vectors
    largest = vectors.abs().amax(dim=1, keepdim=True)
    zero = largest[:, 0] == 0
    if bool(zero.any()):
        raise DataError(
            f"{what}: {_first(zero, names)} is a zero vector ({int(zero.sum())} of {len(zero)} are), which has no "
            "cosine; leave it out, or build an index with --metric dot"
        )
    lengths = vectors.norm(dim=1, keepdim=True)
    odd = ~torch.isfinite(lengths[:, 0]) | (lengths[:, 0] < SQUARED)
    if bool(odd.any()):  # squares of their numbers are beyond float32, or below it
        vectors = torch.where(odd[:, None], vectors / largest, vectors)
        lengths = vectors.norm(dim=1, keepdim=True)
    return torch.div(vectors, lengths)


def _first(bad: Tensor, names: Sequence[str] | None) -> str:
    place = int(bad.nonzero()[0, 0])
    return f"row {place}" if names is None else f"row {place} (id {names[place]!r})"
