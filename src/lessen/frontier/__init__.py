"""Many measurements at once: read back, compared in pairs, judged, and cut to what is worth its cost."""

from lessen.frontier.frontier import COSTS, MORE_IS_BETTER, Frontier
from lessen.frontier.point import Estimate, Point

__all__ = ["COSTS", "MORE_IS_BETTER", "Estimate", "Frontier", "Point"]
