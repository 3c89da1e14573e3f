"""Rows of a table that took one Adam step since the checkpoint before: of their three arrays, one is news.

    exp_avg'    = b1 exp_avg + (1 - b1) g                            coded
    exp_avg_sq' = b2 exp_avg_sq + (1 - b2) g^2                       predicted: exp_avg' gives g
    weight'     = weight - s exp_avg' / (sqrt(exp_avg_sq') + eps)    predicted, with one number s a row

Most rows that moved at all moved once under a lazy optimiser (SparseAdam): the ids of real logs have a long tail. The
prediction is right to a unit in the last place or two, so that such a row costs a little over a third of what it cost
before. What is left over is coded, so the result is bit-identical whatever the optimiser really was.
`adam_two_steps` does the same for rows that moved twice.

Only additions, products, quotients and roots of IEEE numbers are used: the same bits on every machine.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from lessen.checkpoints import coder, exact
from lessen.checkpoints.exact import Words
from lessen.errors import ArtifactError

Values = NDArray[np.float32]

ROLES = frozenset({"weight", "first", "second"})
_BETAS = tuple((b1, b2) for b1 in (0.9, 0.8, 0.95, 0.5, 0.0) for b2 in (0.999, 0.99, 0.98, 0.95, 0.9, 0.9999))
"""What optimisers are run with; under other betas no row is taken for one that moved once."""
EPS = np.float32(1e-8)
_SAMPLE = 512
_FEWEST = 64
"""With fewer such rows, the tables of their own blocks would cost what the prediction saves."""
_CLOSE = 10
"""Bits that a predicted second moment may be off. A row that moved twice is off by 13 or more."""
_SAME, _WIDTH, _MOST = 3e-6, 4, 4096
_HEAD = struct.Struct("<2d")


def moved_once(
    now: dict[str, Words], before: dict[str, Words], columns: int
) -> tuple[NDArray[np.bool_], tuple[float, float]]:
    """Find the rows that took one step: [rows] and the betas under which that fits, (0, 0) if none do.

    Args:
        now: by role (weight, first, second), bits of F32 [rows * columns]; `before` likewise, one checkpoint earlier.
    """
    rows = now["first"].size // columns
    stride = max(1, rows // _SAMPLE)
    new, old = _sample(now, columns, stride), _sample(before, columns, stride)
    found = [int(np.count_nonzero(_fits(new, old, columns, betas))) for betas in _BETAS]
    best = int(np.argmax(found))
    if found[best] * stride < _FEWEST:
        return np.zeros(rows, bool), (0.0, 0.0)
    return _fits(now, before, columns, _BETAS[best]), _BETAS[best]


def _sample(piece: dict[str, Words], columns: int, stride: int) -> dict[str, Words]:
    return {role: words.reshape(-1, columns)[::stride].reshape(-1) for role, words in piece.items()}


def _fits(
    now: dict[str, Words], before: dict[str, Words], columns: int, betas: tuple[float, float]
) -> NDArray[np.bool_]:
    predicted = _second(now["first"], before, *betas)
    off = exact.distance(now["second"], predicted)
    farthest = off.reshape(-1, columns).max(1)
    close: NDArray[np.bool_] = farthest < np.uint64(1 << _CLOSE)
    return close


def _second(first: Words, before: dict[str, Words], b1: float, b2: float) -> Words:
    """Return the bits of the second moment that follow from the first, [n]."""
    old_first, old = before["first"].view(np.float32), before["second"].view(np.float32)
    with np.errstate(all="ignore"):
        gradient = (first.view(np.float32) - old_first) / np.float32(1 - b1) + old_first
        second = old + (gradient * gradient - old) * np.float32(1 - b2)
    return np.where(np.isfinite(second), second, old).view(np.uint32)


def direction(first: Words, second: Words, columns: int) -> Values:
    """Return what Adam multiplies with the step size, [rows, columns]; zero where it is not finite."""
    with np.errstate(all="ignore"):
        unit = first.view(np.float32) / (np.sqrt(second.view(np.float32)) + EPS)
    return np.where(np.isfinite(unit), unit, np.float32(0)).reshape(-1, columns)


def move(before: Words, unit: Values, sizes: Values) -> Words:
    """Return the bits of the weight after a step of `sizes` [rows] along `unit`, [n]; as before where not finite."""
    old = before.view(np.float32)
    with np.errstate(all="ignore"):
        weight = old - (sizes[:, None] * unit).reshape(-1)
    return np.where(np.isfinite(weight), weight, old).view(np.uint32)


def encode(now: dict[str, Words], before: dict[str, Words], columns: int, betas: tuple[float, float]) -> bytes:
    """Code rows that moved once; the arguments are those of `moved_once`, for these rows only."""
    unit = direction(now["first"], now["second"], columns)
    book, codes = _step_sizes(now["weight"], before["weight"], unit)
    return coder.join(
        [
            _HEAD.pack(*betas),
            book.astype("<f4").tobytes(),
            coder.encode(codes),
            exact.encode(now["first"], "F32", before["first"], before["second"]),
            exact.encode(now["second"], "F32", _second(now["first"], before, *betas)),
            exact.encode(now["weight"], "F32", move(before["weight"], unit, book[codes])),
        ]
    )


def decode(blob: bytes, before: dict[str, Words], columns: int) -> dict[str, Words]:
    """Undo `encode`. Raises ArtifactError."""
    parts = coder.split(blob)
    if len(parts) != 6:
        raise ArtifactError("a block of rows that moved once is malformed")
    betas, book = _steps(parts)
    count = before["first"].size
    codes = coder.decode(parts[2], count // columns, np.uint16)
    if codes.size and int(codes.max()) >= book.size:
        raise ArtifactError("a block of rows that moved once uses a step size that it lacks")
    first = exact.decode(parts[3], count, "F32", before["first"], before["second"], 4)
    second = exact.decode(parts[4], count, "F32", _second(first, before, *betas), None, 4)
    predicted = move(before["weight"], direction(first, second, columns), book[codes])
    return {"weight": exact.decode(parts[5], count, "F32", predicted, None, 4), "first": first, "second": second}


def steps_of(blob: bytes) -> tuple[tuple[float, float], Values]:
    """Return the betas and the step sizes, ascending, of what `encode` made. Raises ArtifactError."""
    return _steps(coder.split(blob))


def _steps(parts: list[bytes]) -> tuple[tuple[float, float], Values]:
    if len(parts) < 2 or len(parts[0]) != _HEAD.size or not parts[1] or len(parts[1]) % 4:
        raise ArtifactError("the step sizes of a block are malformed")
    b1, b2 = _HEAD.unpack(parts[0])
    return (b1, b2), np.frombuffer(parts[1], "<f4").astype(np.float32)


# -- step sizes ----------------------------------------------------------------------------------------------------
def _step_sizes(weight: Words, before: Words, unit: Values) -> tuple[Values, NDArray[np.uint16]]:
    """Fit step sizes by least squares; return a codebook float32 and the code of each row, [rows].

    Rows that moved at the same step of training have the same size but for rounding: what lies close together is one
    entry, fitted to all its rows.
    """
    with np.errstate(all="ignore"):
        moved = (before.view(np.float32).astype(np.float64) - weight.view(np.float32)).reshape(unit.shape)
        along, weights = (moved * unit).sum(1), np.square(unit, dtype=np.float64).sum(1)
        sizes = along / weights
    usable = np.isfinite(sizes) & np.isfinite(along)
    codes = np.zeros(len(unit), np.uint16)
    if not usable.any():
        return np.zeros(1, np.float32), codes
    labels = _neighbours(sizes[usable])
    codes[usable] = labels
    with np.errstate(all="ignore"):
        book = np.bincount(labels, along[usable]) / np.bincount(labels, weights[usable])
        return book.astype(np.float32), codes


def _neighbours(sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the groups of sizes that lie within _SAME of the next, and within _WIDTH in all.

    Sizes are taken for the same from farther and farther apart where that gives more than _MOST groups (steps so small
    that rounding hides their size): the prediction is worse, and what is left over is coded.
    """
    unit = float(np.median(np.abs(sizes))) or 1.0
    same = _SAME
    while True:
        labels = _grouped(np.clip(sizes / (unit * same), -1e15, 1e15))
        if int(labels.max(initial=0)) < _MOST:
            return labels
        same *= 16


def _grouped(cells: NDArray[np.float64]) -> NDArray[np.int64]:
    order = np.argsort(cells, kind="stable")
    ordered = cells[order]
    starts = np.concatenate([[True], np.diff(ordered) > 1])
    run = np.cumsum(starts) - 1
    part = np.floor((ordered - ordered[starts][run]) / _WIDTH)
    labels = np.empty(cells.size, np.int64)
    labels[order] = np.cumsum(np.concatenate([[False], (np.diff(run) > 0) | (np.diff(part) > 0)]))
    return labels
