"""Noise controls: columns made of nothing, scored like any other, so that a real column has a floor to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lessen.selection.ranking.rows import mix

Keys = NDArray[np.uint64]
CEILING = "control: copy of the label"
CARDINALITIES = (2, 100, 2_000, 10_000, 50_000)


def controls(keys: Keys, target: Keys) -> dict[str, Keys]:
    """Return value hashes of eleven controls for rows with these keys and hashed labels.

    All but the copy of the label know nothing about it. Gaussian and uniform are rounded (2 and 3 decimals), since
    unrounded they would be all unique and score 0 by construction.
    """
    result = {"control: constant": np.zeros(len(keys), dtype=np.uint64), CEILING: target}
    for salt, cardinality in enumerate(CARDINALITIES, 1):
        result[f"control: {cardinality} random values"] = mix(_draw(keys, salt) % np.uint64(cardinality))
    first, second = _unit(_draw(keys, 11)), _unit(_draw(keys, 12))
    bell = np.sqrt(-2.0 * np.log(np.maximum(first, 1e-300))) * np.cos(2 * np.pi * second)
    result["control: gaussian"] = mix(np.rint(bell * 100).astype(np.int64).view(np.uint64))
    result["control: uniform"] = mix(np.rint(_unit(_draw(keys, 13)) * 1000).astype(np.uint64))
    result["control: row key"] = keys
    result["control: hash of the row"] = _draw(keys, 14)
    return result


def _draw(keys: Keys, salt: int) -> Keys:
    return mix(keys ^ mix(np.full(1, salt + 0xC0FFEE, dtype=np.uint64)))


def _unit(values: Keys) -> NDArray[np.float64]:
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53
