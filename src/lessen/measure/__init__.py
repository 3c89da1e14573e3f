"""Everything measured of a model: quality, bytes, memory, multiply-adds, time."""
