"""Search under a budget: a space of recipes, light predictors of what was measured, and a genetic search on them."""

from lessen.search.goal import Goal
from lessen.search.propose import Measured, propose
from lessen.search.run import SearchResult, search
from lessen.search.space import Space

__all__ = ["Goal", "Measured", "SearchResult", "Space", "propose", "search"]
