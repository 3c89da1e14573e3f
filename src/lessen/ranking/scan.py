"""The door to how a table is read for ranking; see `lessen.selection.ranking.scan`."""

from __future__ import annotations

from lessen.selection.ranking.scan import ScanSettings

__all__ = ["ScanSettings"]
