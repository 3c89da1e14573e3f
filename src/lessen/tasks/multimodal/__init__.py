"""Tasks on models that read pictures and words together."""
