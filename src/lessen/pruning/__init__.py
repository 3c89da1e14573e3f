"""Slimmer Transformers: what can be taken out whole, masks on it, its cost, and slicing to plain smaller layers."""
