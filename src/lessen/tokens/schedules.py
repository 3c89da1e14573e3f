"""How many tokens each block removes or keeps, known before the run: for counting, export and static shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lessen.errors import InputError


def constant(removed: int, depth: int) -> tuple[int, ...]:
    """Return the same number for every block."""
    return (removed,) * depth


def sloped(removed: int, slope: float, depth: int) -> tuple[int, ...]:
    """Return numbers that run linearly from int(r(1-slope)) up or down, with the total of the constant schedule.

    `slope` is in [-1, 1]; -1 is the decreasing schedule of ToMe (2r down to 0), 0 the constant one.
    """
    low = int(removed * (1.0 - slope))
    high = 2 * removed - low
    return tuple(int(low + (high - low) * block / max(1, depth - 1)) for block in range(depth))


def merged_counts(tokens: int, removed: Sequence[int], protected: int) -> list[int]:
    """Return the tokens after each block when block l merges `removed[l]` pairs.

    At most half of the unprotected tokens can be sources. The last block that merges may take what is left (as the
    published schedules do); any earlier one that asks for more is an error.

    Raises:
        InputError: a block asks for more pairs than exist; the message names the largest constant number that works.
    """
    counts: list[int] = []
    start, last = tokens, max((block for block, number in enumerate(removed) if number > 0), default=0)
    for block, number in enumerate(removed):
        possible = max(0, (tokens - protected) // 2)
        if number > possible and (block < last or block == 0):
            fits = largest_constant(start, len(removed), protected)
            raise InputError(
                f"block {block} cannot merge {number} of {tokens} tokens ({protected} protected): at most {possible} "
                f"pairs exist; lower r (the largest constant r for {start} tokens and {len(removed)} blocks is {fits})"
            )
        tokens -= min(number, possible)
        counts.append(tokens)
    return counts


def possible(tokens: int, removed: Sequence[int], protected: int) -> tuple[int, ...]:
    """Return `removed` with each block's number lowered to the pairs it has, half of the unprotected tokens."""
    lowered: list[int] = []
    for number in removed:
        lowered.append(min(number, max(0, (tokens - protected) // 2)))
        tokens -= lowered[-1]
    return tuple(lowered)


def largest_constant(tokens: int, depth: int, protected: int) -> int:
    """Return the largest number of pairs that every block but the last can merge."""
    blocks = max(1, depth - 1)
    # before block l there are tokens - r*l; the tightest block is number blocks - 1
    return max(0, (tokens - protected) // (blocks + 1))


def kept_counts(tokens: int, rates: Sequence[float], protected: int, fuse: bool) -> list[int]:
    """Return the tokens after each block when block l keeps ceil(rate * unprotected) of them (EViT's rule).

    Raises:
        InputError: a rate is not in (0, 1].
    """
    counts: list[int] = []
    for block, rate in enumerate(rates):
        if not 0.0 < rate <= 1.0:
            raise InputError(f"the keep rate of block {block} is {rate}; it must be above 0 and at most 1")
        others = tokens - protected
        keep = math.ceil(rate * others - 1e-9)
        if keep < others:
            tokens = protected + keep + (1 if fuse else 0)
        counts.append(tokens)
    return counts
