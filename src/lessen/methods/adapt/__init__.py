"""Methods that adapt a model by few tensors of their own."""
