"""What few-bit methods share: how the grid of a group is chosen."""
