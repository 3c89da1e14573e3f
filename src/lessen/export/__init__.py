"""Compact models in the formats that others run."""
