"""The margin: the largest loss of quality that a user accepts, checked before any work is done for it."""

from __future__ import annotations

import math
from typing import Any

from lessen.errors import ConfigError


def check_margin(value: Any, where: str = "margin") -> float:
    """Return `value` as a margin.

    Raises:
        ConfigError: no number, NaN, infinite, or not above 0.
    """
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known or not math.isfinite(value) or not value > 0:
        raise ConfigError(
            f"{where} = {value!r} is not accepted: give a number above 0, the largest loss of the first metric "
            "that you accept, in its own unit"
        )
    return float(value)
