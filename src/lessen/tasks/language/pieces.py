"""Reading a window in pieces, one pass each, with the cache that a user would hold: what a quantised cache costs shows.

piece 1 -> logits, cache    piece 2, cache -> logits, cache    ...    the bytes that the cache holds at the end
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lessen.decoding.kv_states import held_bytes
from lessen.decoding.view import cache_argument
from lessen.errors import NonFiniteError


def read_in_pieces(model: Any, ids: Tensor, piece: int, first: int = 0) -> tuple[Tensor, int]:
    """Return the logits [T,V] of a text int64 [1,T] and the bytes of its keys and values.

    Args:
        piece: tokens of a pass.
        first: tokens of the first pass at least; it brings those that all texts start with.

    Raises:
        NonFiniteError: NaN or infinity in the logits.
    """
    name, parts = cache_argument(model), []
    cache, start = None, 0
    while start < ids.shape[1]:
        end = max(start + piece, first if not start else 0)
        output = model(**{"input_ids": ids[:, start:end], name: cache, "use_cache": True, "return_dict": True})
        cache, start = output[name], end
        parts.append(output.logits[0])
        if not bool(torch.isfinite(parts[-1]).all()):
            raise NonFiniteError(f"{type(model).__name__} gave NaN or infinite logits on a text")
    return torch.cat(parts), held_bytes(cache)
