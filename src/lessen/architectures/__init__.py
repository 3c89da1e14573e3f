"""The places of a model's parts, for hosts that we did not write."""
