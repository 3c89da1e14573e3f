"""Compiled loops over token vectors; every one has a way in torch that gives the same numbers."""
