"""Tasks made so that what a model leans on is known: they test methods, not data."""
