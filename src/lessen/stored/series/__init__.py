"""Stored forms of models of time series."""
