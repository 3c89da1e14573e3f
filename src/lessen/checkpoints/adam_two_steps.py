"""Rows of a table that took two Adam steps since the checkpoint before: two arrays of three are news.

Two gradients g, h lie between the checkpoints, and the moments give two equations for them, number by number:

    A = (exp_avg'    - b1^2 exp_avg)    / (1 - b1) = b1 g   + h
    B = (exp_avg_sq' - b2^2 exp_avg_sq) / (1 - b2) = b2 g^2 + h^2

so that g is one of two roots, one bit says which, and both steps of the weight follow. The step sizes are those that
`adam_step` found for rows that moved once. Only additions, products, quotients and roots of IEEE numbers are used: the
same bits everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lessen.checkpoints import coder, exact
from lessen.checkpoints.adam_step import EPS, Values, direction, move
from lessen.checkpoints.exact import Words
from lessen.errors import ArtifactError

_WORTH = 14
"""Mean bits a number of a row may be off and still be better coded this way."""

Moves = tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]
"""Which root, [rows, columns]; the code of the first and of the second step size, [rows]."""


def moved_twice(
    now: dict[str, Words], before: dict[str, Words], columns: int, betas: tuple[float, float], book: Values
) -> tuple[NDArray[np.bool_], Moves]:
    """Find the rows that two steps explain: [rows], and what those steps were, for all rows.

    Args:
        now: by role, bits of F32 [rows * columns]; `before` likewise, one checkpoint earlier.
        book: step sizes, ascending.
    """
    roots = _first_steps(now["first"], now["second"], before, columns, betas)
    later = direction(now["first"], now["second"], columns)
    with np.errstate(all="ignore"):
        way = before["weight"].view(np.float32).astype(np.float64) - now["weight"].view(np.float32)
    way = np.where(np.isfinite(way), way, 0).reshape(-1, columns)
    s1 = s2 = np.full((len(way), 1), float(np.median(book)))
    for _ in range(3):
        s1, s2 = _fit(way, _chosen(roots, _upper(way, roots, later, s1, s2)), later)
    codes = _nearest(book, s1), _nearest(book, s2)
    upper = _upper(way, roots, later, book[codes[0]][:, None], book[codes[1]][:, None])
    moves = (upper, *codes)
    predicted = _predict(before["weight"], _chosen(roots, upper), later, book, moves)
    bits = np.log2(exact.distance(now["weight"], predicted).astype(np.float64) + 1).reshape(-1, columns)
    return bits.mean(1) < _WORTH, moves


def _first_steps(
    first: Words, second: Words, before: dict[str, Words], columns: int, betas: tuple[float, float]
) -> tuple[Values, Values]:
    """Return Adam's direction at the first of two steps, [rows, columns], for the lower and the upper root."""
    b1, b2 = betas
    with np.errstate(all="ignore"):
        new_m, new_v, old_m, old_v = (
            words.view(np.float32).astype(np.float64) for words in (first, second, before["first"], before["second"])
        )
        a, b = (new_m - b1 * b1 * old_m) / (1 - b1), (new_v - b2 * b2 * old_v) / (1 - b2)
        scale = b2 + b1 * b1
        half = np.sqrt(np.maximum((a * b1) * (a * b1) - scale * (a * a - b), 0.0))
        found = []
        for gradient in ((a * b1 - half) / scale, (a * b1 + half) / scale):
            root = np.sqrt(b2 * old_v + (1 - b2) * (gradient * gradient)) + float(EPS)
            unit = ((b1 * old_m + (1 - b1) * gradient) / root).astype(np.float32)
            found.append(np.where(np.isfinite(unit), unit, np.float32(0)).reshape(-1, columns))
    return found[0], found[1]


def _chosen(roots: tuple[Values, Values], upper: NDArray[np.bool_]) -> Values:
    return np.where(upper, roots[1], roots[0])


def _upper(
    way: NDArray[np.float64],
    roots: tuple[Values, Values],
    later: Values,
    s1: NDArray[np.float64] | Values,
    s2: NDArray[np.float64] | Values,
) -> NDArray[np.bool_]:
    """Say where the upper root comes closer to the way the weight went, under these step sizes [rows, 1]."""
    rest = way - s2 * later
    closer: NDArray[np.bool_] = np.abs(rest - s1 * roots[1]) < np.abs(rest - s1 * roots[0])
    return closer


def _fit(way: NDArray[np.float64], earlier: Values, later: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit the two step sizes of every row by least squares, [rows, 1] each; 0 where they cannot be told apart."""
    u, v = earlier.astype(np.float64), later.astype(np.float64)
    uu, vv, uv, uy, vy = ((x * y).sum(1, keepdims=True) for x, y in ((u, u), (v, v), (u, v), (u, way), (v, way)))
    with np.errstate(all="ignore"):
        determinant = uu * vv - uv * uv
        fitted = (uy * vv - vy * uv) / determinant, (vy * uu - uy * uv) / determinant
    return np.nan_to_num(fitted[0], posinf=0, neginf=0), np.nan_to_num(fitted[1], posinf=0, neginf=0)


def _nearest(book: Values, sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.searchsorted((book[1:] + book[:-1]) / 2, sizes[:, 0])


def _predict(before: Words, earlier: Values, later: Values, book: Values, moves: Moves) -> Words:
    return move(move(before, earlier, book[moves[1]]), later, book[moves[2]])


def encode(
    now: dict[str, Words],
    before: dict[str, Words],
    columns: int,
    betas: tuple[float, float],
    book: Values,
    moves: Moves,
) -> bytes:
    """Code rows that moved twice; the arguments are those of `moved_twice`, for these rows only."""
    upper, early, late = moves
    earlier = _chosen(_first_steps(now["first"], now["second"], before, columns, betas), upper)
    predicted = _predict(before["weight"], earlier, direction(now["first"], now["second"], columns), book, moves)
    return coder.join(
        [
            coder.encode_mask(upper),
            coder.encode(early.astype(np.uint16)),
            coder.encode(late.astype(np.uint16)),
            exact.encode(now["second"], "F32", before["second"]),
            exact.encode(now["first"], "F32", before["first"], now["second"]),
            exact.encode(now["weight"], "F32", predicted),
        ]
    )


def decode(
    blob: bytes, before: dict[str, Words], columns: int, betas: tuple[float, float], book: Values
) -> dict[str, Words]:
    """Undo `encode`. Raises ArtifactError."""
    parts = coder.split(blob)
    if len(parts) != 6:
        raise ArtifactError("a block of rows that moved twice is malformed")
    count = before["first"].size
    rows = count // columns
    upper = coder.decode_mask(parts[0], count).reshape(rows, columns)
    early, late = (coder.decode(part, rows, np.uint16) for part in parts[1:3])
    if max(int(early.max(initial=0)), int(late.max(initial=0))) >= book.size:
        raise ArtifactError("a block of rows that moved twice uses a step size that it lacks")
    second = exact.decode(parts[3], count, "F32", before["second"], None, 4)
    first = exact.decode(parts[4], count, "F32", before["first"], second, 4)
    earlier = _chosen(_first_steps(first, second, before, columns, betas), upper)
    moves = (upper, early, late)
    predicted = _predict(before["weight"], earlier, direction(first, second, columns), book, moves)
    return {"weight": exact.decode(parts[5], count, "F32", predicted, None, 4), "first": first, "second": second}
