"""Where the parts of a model are, for hosts that we did not write."""
