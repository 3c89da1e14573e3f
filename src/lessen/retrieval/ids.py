"""Names of documents as tensors: UTF-8 end to end, where each ends, and a 64-bit digest of each to find repeats by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lessen.errors import DataError

LONGEST = 1000
"""Characters of a name."""


def check_ids(ids: Sequence[str]) -> None:
    """Refuse names that cannot serve.

    Raises:
        DataError: one is empty or too long, or stands twice.
    """
    seen: dict[str, int] = {}
    for place, name in enumerate(ids):
        if not name or len(name) > LONGEST:
            raise DataError(f"document {place} has an id of {len(name)} characters; give each one of 1 to {LONGEST}")
        if name in seen:
            raise DataError(f"the id {name!r} stands twice, at {seen[name]} and {place}; give each document its own")
        seen[name] = place


def packed(ids: Sequence[str]) -> dict[str, Tensor]:
    """Return `ids.text` uint8 [bytes], `ids.ends` int64 [n] and `ids.digests` int64 [n]."""
    raw = [name.encode("utf-8", "surrogatepass") for name in ids]
    ends = torch.tensor([len(one) for one in raw], dtype=torch.int64).cumsum(0)
    text = torch.frombuffer(bytearray(b"".join(raw)), dtype=torch.uint8) if raw else torch.zeros(0, dtype=torch.uint8)
    return {"ids.text": text, "ids.ends": ends, "ids.digests": digests(ids)}


def digests(ids: Sequence[str]) -> Tensor:
    """Return 64 bits of the BLAKE2 digest of each name, int64 [n]."""
    found = [hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in ids]
    return (
        torch.frombuffer(bytearray(b"".join(found)), dtype=torch.int64) if found else torch.zeros(0, dtype=torch.int64)
    )


def names(text: Tensor, ends: Tensor, numbers: Sequence[int]) -> list[str]:
    """Return the names of rows."""
    found = []
    for number in numbers:
        start = int(ends[number - 1]) if number else 0
        found.append(bytes(text[start : int(ends[number])].numpy()).decode("utf-8", "surrogatepass"))
    return found
