"""Compact vectors that are searched."""
