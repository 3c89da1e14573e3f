"""Bits for pictures: machinery of codecs, without cards."""
