"""Zeros in weights: which stay, under a density or N of every M, and training that leads there."""
