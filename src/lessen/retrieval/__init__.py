"""Retrieval vectors that cost less to store and to search, and encoders that can be replaced."""
