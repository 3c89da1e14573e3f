"""Click-through rate: binary labels, categorical, multi-valued and sequence fields in one flat table."""
