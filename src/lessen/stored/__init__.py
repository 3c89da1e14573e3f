"""Compact modules that remain after compression. They depend on nothing but torch and hold no training code."""
