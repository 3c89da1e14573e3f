"""The door to feature ranking: `from lessen.ranking import rank`. Its rooms are in `lessen.selection.ranking`."""

from __future__ import annotations

from lessen.selection.ranking import Ranking, RankSettings, rank, rank_frame

__all__ = ["RankSettings", "Ranking", "rank", "rank_frame"]
