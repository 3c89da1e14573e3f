"""Compact embedding tables."""
