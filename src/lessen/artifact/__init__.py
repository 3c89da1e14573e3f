"""A compact model as one verified directory: `artifact.save`, `artifact.load`, `artifact.verify`."""

from __future__ import annotations

from lessen.artifact.delta import base_of
from lessen.artifact.folder import load, save, stored_size, verify

__all__ = ["base_of", "load", "save", "stored_size", "verify"]
