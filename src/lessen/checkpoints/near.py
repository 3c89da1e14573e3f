"""Near-exact coding of a weight and its Adam moments (ExCP, ICML 2024, arXiv 2406.11257, and what measuring changed).

    W_t  - What_{t-1} ----> D --prune--> quantise --> codes --> mask + levels --> rANS
    exp_avg    (v in ExCP) ---- joint mask --> quantise --> codes ...
    exp_avg_sq (m in ExCP) ---- codes ...

`rule` chooses how much is pruned:

    tensor    ExCP's code:  r_w = min(2.5, alpha / sqrt(mean exp_avg_sq)) * median |D|
    element   ExCP's paper: r_w = alpha / sqrt(exp_avg_sq) * median |D|, per element (capped at 2.5 medians as well)
    adaptive  ours: a dead zone around zero whose width follows the size of the residual itself

Moments live, with `tensor` and `element`, only where the weight residual lives and |exp_avg| > beta * mean |exp_avg|,
values are k-means centroids, and (unlike the official script) second moments keep float32 centroids and a floor at
their median, because half precision rounds them to zero and Adam then divides by nearly nothing.

Cells are uniform with `adaptive`, values their centroids (better than k-means once codes are entropy-coded).
The second moment is row x column factors times a coarse power or, with `second_step`, finer: what it grew or shrank by
since the step before. The first moment is quantised in units of the root of the second: what Adam's next step depends
on. No moment is ever zero where the original was not.

Differences are taken against the reconstruction, so errors never add up along the series.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lessen.checkpoints import coder
from lessen.checkpoints.quantisers import Values, cells, decode_values, encode_codes, encode_uniform, kmeans
from lessen.errors import ArtifactError

Rule = Literal["adaptive", "tensor", "element"]
_CAP = 2.5
_SMALL = 4096
"""Arrays below this size are quantised four times finer: they weigh nothing and norms and biases matter."""
_TINY = np.float32(1e-36)


class NearSettings(BaseModel):
    """How much `near` may lose. The defaults keep the resume gap inside seed noise (docs/checkpoints.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rule: Rule = "adaptive"
    step: float = Field(1.5, gt=0, le=16, description="adaptive: cell width of the weight residual, in its own rms")
    dead_zone: float = Field(0.65, ge=0.5, lt=1, description="adaptive: residuals below this share of a cell become 0")
    first_step: float = Field(
        3.0, gt=0, le=16, description="adaptive: cell width of exp_avg / sqrt(exp_avg_sq), in its rms"
    )
    second_octaves: float = Field(
        3.0, gt=0, le=8, description="adaptive: cell width of exp_avg_sq, in octaves, where nothing is known before it"
    )
    second_step: float | None = Field(
        None, gt=0, le=8, description="adaptive: cell width of exp_avg_sq against the step before, in octaves"
    )
    key_cells: float = Field(256.0, ge=4, le=4096, description="key frames: cells per rms of a weight")
    alpha: float | None = Field(None, ge=0, description="ExCP's alpha; None scales it so that r_w is 2.5 medians")
    beta: float = Field(2.0, ge=0, description="ExCP's beta")
    bits: int = Field(4, ge=1, le=8, description="2^bits - 1 levels besides zero")

    @model_validator(mode="after")
    def _levels_on_both_sides(self) -> NearSettings:
        if self.rule == "adaptive" and self.bits < 2:
            raise ValueError("rule adaptive needs bits >= 2: one level on each side of zero")
        return self


class Need(IntEnum):
    """How much of a step is to be rebuilt: the weight, the second moment too, everything."""

    WEIGHT = 0
    SECOND = 1
    ALL = 2


@dataclass
class Triple:
    """A weight [rows, columns] and its moments of the same shape; either moment may be absent."""

    weight: Values
    first: Values | None = None
    second: Values | None = None


def encode(
    now: Triple, reference: Values | None, settings: NearSettings, second_before: Values | None = None
) -> tuple[bytes, Triple, bool]:
    """Code a weight [rows, columns] and its moments.

    Layout: weight codes; first-moment codes; second-moment codes, with the row and column powers they multiply if they
    do not multiply the second moment of the step before.

    Args:
        reference: the weight as rebuilt one step earlier; None in a key frame.
        second_before: the second moment as rebuilt one step earlier, if it is known.

    Returns:
        The bytes, what `decode` will give, and whether decoding needs `second_before`.
    """
    weight, residual, kept = _encode_weight(now, reference, settings)
    rebuilt = Triple(residual if reference is None else reference + residual)
    if settings.rule != "adaptive":
        first, second = _encode_joint(now, kept, settings, rebuilt)
        return coder.join([weight, first, second]), rebuilt, False
    linked = None if now.second is None else _encode_linked(now.second, second_before, settings)
    second, rebuilt.second = linked or _encode_second(now.second, settings, reference is None)
    first, rebuilt.first = _encode_first(now.first, rebuilt.second, settings)
    return coder.join([weight, first, second]), rebuilt, linked is not None


def decode(
    blob: bytes,
    reference: Values | None,
    shape: tuple[int, int],
    need: Need = Need.ALL,
    second_before: Values | None = None,
) -> Triple:
    """Undo `encode`: the rebuilt weight and the moments that `need` asks for.

    Args:
        second_before: given where `encode` said that it is needed.

    Raises:
        ArtifactError: the bytes are none of `encode`'s.
    """
    parts = coder.split(blob)
    if len(parts) != 3:
        raise ArtifactError("a near block is malformed")
    count = shape[0] * shape[1]
    weight = decode_values(parts[0], count).reshape(shape)
    now = Triple(weight if reference is None else reference + weight)
    if need >= Need.SECOND and parts[2]:
        now.second = _decode_second(parts[2], shape, second_before)
    if need >= Need.ALL and parts[1]:
        now.first = _decode_first(parts[1], now.second, shape)
    return now


def _fine(x: Values) -> float:
    return 0.25 if x.size < _SMALL else 1.0


def _levels(x: Values, settings: NearSettings) -> int:
    return 255 if x.size < _SMALL else 2**settings.bits - 1


def _rms(x: Values) -> float:
    """Return the root mean square, 1 for an array of zeros."""
    flat = x.reshape(-1)
    with np.errstate(over="ignore"):
        total = float(np.dot(flat, flat))
    if not np.isfinite(total):
        total = float(np.square(flat, dtype=np.float64).sum())
    return float(np.sqrt(total / max(1, x.size))) or 1.0


def _encode_weight(
    now: Triple, reference: Values | None, settings: NearSettings
) -> tuple[bytes, Values, NDArray[np.bool_] | None]:
    if reference is None:
        blob = encode_uniform(now.weight, _rms(now.weight) / settings.key_cells)
        return blob, decode_values(blob, now.weight.size).reshape(now.weight.shape), None
    residual = now.weight - reference
    if settings.rule == "adaptive":
        width = settings.step * _rms(residual) * _fine(residual)
        codes, book = cells(residual, width, settings.dead_zone, _levels(residual, settings))
    else:
        kept = np.abs(residual) > weight_threshold(residual, now.second, settings)
        codes, book = kmeans(residual, kept, 2**settings.bits - 1)
    return encode_codes(codes, book), book[codes], codes != 0


def weight_threshold(residual: Values, second: Values | None, settings: NearSettings) -> Any:
    """Return ExCP's r_w: a scalar for rule `tensor`, an array like `residual` for `element`.

    The median is over non-zero residuals: in a table of which few rows moved it would otherwise be zero.
    """
    size = np.abs(residual)
    moved = size[size > 0]
    median = float(np.median(moved)) if moved.size else 0.0
    if second is None:
        return _CAP * median
    mean_root = float(np.sqrt(second.mean())) or 1e-30
    alpha = settings.alpha if settings.alpha is not None else _CAP * mean_root
    if settings.rule == "tensor":
        return min(_CAP, alpha / mean_root) * median
    return np.minimum(np.float32(_CAP), np.float32(alpha) / np.sqrt(np.maximum(second, _TINY))) * np.float32(median)


def _encode_joint(
    now: Triple, kept: NDArray[np.bool_] | None, settings: NearSettings, rebuilt: Triple
) -> tuple[bytes, bytes]:
    """Code both moments ExCP's way: only where the weight was kept and the first moment is large."""
    if now.first is None:
        return b"", b""
    joint = np.abs(now.first) > settings.beta * np.abs(now.first).mean()
    if kept is not None:
        joint &= kept
    levels = 2**settings.bits - 1
    codes, book = kmeans(now.first, joint, levels)
    first, rebuilt.first = b"\0" + encode_codes(codes, book), book[codes]
    if now.second is None:
        return first, b""
    codes, book = kmeans(now.second, joint, levels)
    book[0] = np.median(now.second)
    rebuilt.second = book[codes]
    return first, coder.join([encode_codes(codes, book)])


def _encode_first(first: Values | None, second: Values | None, settings: NearSettings) -> tuple[bytes, Values | None]:
    if first is None:
        return b"", None
    root = np.ones_like(first) if second is None else _root(second)
    unit = np.divide(first, root, out=np.zeros_like(first), where=root > 0)
    width = settings.first_step * _rms(unit) * _fine(unit)
    codes, book = cells(unit, width, 0.6, _levels(unit, settings))
    return bytes([second is not None]) + encode_codes(codes, book), book[codes] * root


def _decode_first(blob: bytes, second: Values | None, shape: tuple[int, int]) -> Values:
    unit = decode_values(blob[1:], shape[0] * shape[1]).reshape(shape)
    if blob[0] == 0:
        return unit
    if second is None:
        raise ArtifactError("a first moment needs the second, which is not there")
    return unit * _root(second)


def _root(second: Values) -> Values:
    """Return the unit of the first moment: the root of the second, 0 where that never was."""
    root: Values = np.sqrt(np.where(second > _TINY, second, np.float32(0)))
    return root


# -- second moment: row and column powers of two, and coarse codes -------------------------------------------------
_QUARTERS = np.array([1.0, 1.189207115, 1.414213562, 1.681792831], np.float32)


def _power(quarters: NDArray[np.int16]) -> Values:
    """Return 2^(quarters / 4) as float32, from constants only: the same on every machine."""
    power: Values = np.ldexp(_QUARTERS[quarters & 3], (quarters >> 2).astype(np.int32))
    return power


def _factors(logarithm: Values, positive: NDArray[np.bool_]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Fit rows[i] + columns[j] to quarter octaves of the second moment, zeros left out."""
    weights = positive.astype(np.float32)
    total = float(weights.sum()) or 1.0
    mean = float((logarithm * weights).sum()) / total
    row, column = np.full(len(weights), mean), np.zeros(weights.shape[1])
    if min(weights.shape) > 1:
        rows, columns = weights.sum(1), weights.sum(0)
        present = logarithm * weights
        row = np.where(rows > 0, present.sum(1) / np.maximum(rows, 1), row)
        column = np.where(columns > 0, present.sum(0) / np.maximum(columns, 1) - mean, column)
    return np.rint(4 * row).astype(np.int16), np.rint(4 * column).astype(np.int16)


def _encode_linked(second: Values, before: Values | None, settings: NearSettings) -> tuple[bytes, Values] | None:
    """Code by what factor a second moment changed; None where that cannot be, as it was or became zero."""
    if settings.second_step is None or before is None or not np.array_equal(second > _TINY, before > _TINY):
        return None
    growth = np.log2(np.maximum(second, _TINY)) - np.log2(np.maximum(before, _TINY))
    middle = np.float32(np.median(growth.reshape(-1)[:: max(1, growth.size // 8192)]))
    width = settings.second_step * (0.25 if second.size < _SMALL else 1.0)
    codes, book = cells(growth - middle, width, 0.6, 255)
    inside = codes == 0
    book[0] = float((growth - middle)[inside].mean()) if inside.any() else 0.0  # what all of them decay by
    book = np.exp2(book + middle).astype(np.float32)
    rebuilt = before * book[codes]
    if not np.array_equal(rebuilt > 0, before > 0) or not np.isfinite(rebuilt).all():
        return None
    return coder.join([encode_codes(codes, book)]), rebuilt


def _encode_second(second: Values | None, settings: NearSettings, key: bool) -> tuple[bytes, Values | None]:
    if second is None:
        return b"", None
    positive = second > _TINY
    logarithm = np.log2(np.maximum(second, _TINY))
    row, column = _factors(logarithm, positive)
    rest = logarithm - (row[:, None].astype(np.float32) + column.astype(np.float32)) * np.float32(0.25)
    width, levels = settings.second_octaves, _levels(second, settings)
    if key and settings.second_step is not None:  # what a key frame leaves out, the next step would have to make up for
        width, levels = settings.second_step, 254
    codes, book = cells(rest, width * (0.125 if second.size < _SMALL else 1.0), 0.6, levels)
    book = np.exp2(book)
    if not positive.all():
        codes[~positive] = book.size
        book = np.append(book, np.float32(0))
    book = book.astype(np.float32)
    powers = [coder.compress(part.astype("<i2").tobytes()) for part in (_steps(row), _steps(column))]
    return coder.join([encode_codes(codes, book), *powers]), (book[codes] * _power(row)[:, None]) * _power(column)


def _steps(values: NDArray[np.int16]) -> NDArray[np.int16]:
    return np.diff(values, prepend=np.int16(0))


def _decode_second(blob: bytes, shape: tuple[int, int], before: Values | None) -> Values:
    parts = coder.split(blob)
    values = decode_values(parts[0], shape[0] * shape[1]).reshape(shape)
    if before is not None:
        values = before * values
    if len(parts) == 1:
        return values
    if len(parts) != 3:
        raise ArtifactError("a second moment is malformed")
    sides = [
        np.cumsum(np.frombuffer(coder.decompress(part, 2 * size), "<i2"), dtype=np.int16)
        for part, size in zip(parts[1:], shape, strict=True)
    ]
    return (values * _power(sides[0])[:, None]) * _power(sides[1])
