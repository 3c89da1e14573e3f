"""Methods that shrink series of training checkpoints."""
