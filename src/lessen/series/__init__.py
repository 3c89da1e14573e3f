"""Time series: a large bank of cheap features, of which few are kept."""

from __future__ import annotations

from lessen.series.lightwaves import LightWaves, LightWavesSettings

__all__ = ["LightWaves", "LightWavesSettings"]
