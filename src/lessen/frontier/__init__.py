"""Many measurements at once: read back, compared in pairs, judged, and cut to what is worth its cost."""

from lessen.frontier.frontier import Frontier
from lessen.frontier.point import Estimate, Point

__all__ = ["Estimate", "Frontier", "Point"]
