"""Compact linear layers."""
