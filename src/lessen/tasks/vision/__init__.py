"""Image classification: a plain vision Transformer and CIFAR-10."""
