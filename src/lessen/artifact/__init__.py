"""A compact model as one verified directory."""
