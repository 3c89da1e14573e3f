"""Methods that make pictures and features cost fewer bits on a wire."""
