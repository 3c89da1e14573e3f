"""Methods that shrink sets of input features."""
