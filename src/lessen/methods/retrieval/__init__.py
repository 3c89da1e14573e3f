"""Methods that make retrieval vectors cost less to store and to search."""
