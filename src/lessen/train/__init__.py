"""The one training loop, its hooks, and optimisers for sparse tables."""
