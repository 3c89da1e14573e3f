"""Methods that shrink tokens of a Transformer."""
