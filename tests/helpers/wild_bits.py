"""Pieces of a checkpoint with any bits at all among ordinary numbers."""

from __future__ import annotations

import numpy as np


def wild_pieces(random, roles, numbers, wild):
    """Two pieces of F32 bits by role: small normal numbers, a share `wild` of them any bits, a share zero."""
    pieces = []
    for _ in range(2):
        piece = {role: random.normal(0, 1e-2, numbers).astype(np.float32).view(np.uint32) for role in roles}
        for words in piece.values():
            chosen = random.random(words.size) < wild
            words[chosen] = random.integers(0, 2**32, words.size, dtype=np.uint32)[chosen]
            words[random.random(words.size) < wild] = 0
        pieces.append(piece)
    return pieces
