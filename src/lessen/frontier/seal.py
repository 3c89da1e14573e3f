"""The digest that a written value carries of itself, by which damage and edits are seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lessen.files import canonical, digest

DIGEST = "digest"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value with a digest of everything else in it."""
    body = unsealed(value)
    return {**body, DIGEST: digest(canonical(body))}


def unsealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value without its digest."""
    return {key: item for key, item in value.items() if key != DIGEST}


def is_changed(value: Mapping[str, Any]) -> bool:
    """Return whether the value is not what its digest says; one without a digest says nothing."""
    return DIGEST in value and sealed(value)[DIGEST] != value[DIGEST]
