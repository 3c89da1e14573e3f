"""Which rows and columns are worth keeping."""
