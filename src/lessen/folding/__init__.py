"""Savings that change no output: constant parts, norms, branches and units that a trained model carries for nothing."""
