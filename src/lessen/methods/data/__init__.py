"""Methods that change what a model is trained on, never what judges it."""
