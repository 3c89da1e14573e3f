"""Rank the columns of a table larger than memory, before any model is trained.

files -> chunks -> one pass: tallies (every row), row sample -> scores -> report, and the data rewritten
"""

from __future__ import annotations

from lessen.selection.ranking.ranking import Ranking, RankSettings, rank, rank_frame

__all__ = ["RankSettings", "Ranking", "rank", "rank_frame"]
