"""Methods that shrink linear and convolution weights."""
