"""Methods that shrink passes of a language model."""
