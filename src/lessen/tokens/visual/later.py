"""Words after a prompt whose pictures became fewer tokens: which of them are new, what they see, where they stand.

prompt as written  [N]  -> cache [M], M < N;   then   words [q] at the positions where the whole prompt ends, or shorter
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lessen.errors import InputError
from lessen.tokens.visual.pictures import CACHES

RECORD = "_lessen_shortened"
"""Where a cache says what it holds."""


@dataclass(frozen=True)
class Shortened:
    """A batch of prompts that a cache holds, kept beside its keys and values."""

    kept: Tensor
    """[B,M], 0 where a prompt is filled, of the attention mask's type."""
    full: int
    """N, columns of the prompts as they were written."""
    shorter: Tensor
    """int64 [B], tokens that each prompt lost."""
    memory: Any = None
    """What else is kept for the words that follow."""


def cache_of(given: Mapping[str, Any]) -> Any:
    """Return the cache that a forward is given, or None."""
    return next((given[name] for name in CACHES if given.get(name) is not None), None)


@dataclass
class Prompts:
    """Shortened prompts whose forward is under way, by thread, until the host's cache can remember them."""

    under_way: dict[int, Shortened] = field(default_factory=dict)

    def begin(self, held: Shortened) -> None:
        """Take in what this thread hands to the host."""
        self.under_way[threading.get_ident()] = held

    def end(self, output: Any) -> None:
        """Note it beside keys and values of the host's output, if it has any."""
        held = self.under_way.pop(threading.get_ident(), None)
        cache = next((getattr(output, name) for name in CACHES if getattr(output, name, None) is not None), None)
        if held is not None and cache is not None:
            cache.__dict__[RECORD] = held


def held_by(cache: Any) -> Shortened | None:
    """Return the shortened prompts that a cache holds, None for others; an emptied cache forgets them."""
    if cache is None or cache.get_seq_length() > 0:
        return None if cache is None else cache.__dict__.get(RECORD)
    cache.__dict__.pop(RECORD, None)
    return None


def words_after(held: Shortened, given: Mapping[str, Any], past: int, how: str) -> dict[str, Any]:
    """Return what is given with words after such prompts as the host must be handed it.

    Args:
        past: tokens in the cache; how: prompts became shorter, for messages.

    Raises:
        InputError: another batch, or more pictures, which only a first call shows.
    """
    ids, mask, positions = given["input_ids"], given.get("attention_mask"), given.get("position_ids")
    batch, left = held.kept.shape
    if len(ids) != batch:
        raise InputError(f"a cache of {batch} {how} prompts was handed a batch of {len(ids)}; use each with its own")
    if given.get("pixel_values") is not None or (given.get("mm_encoder_outputs") or {}).get("image") is not None:
        raise InputError(
            f"pictures were given after {how} prompts that a cache holds; give the whole conversation again without it"
        )
    heard = past - left
    new = ids.shape[1]
    if mask is not None:
        new = mask.shape[1] - held.full - heard
    elif positions is not None:
        written = int(held.kept[0].sum() + held.shorter[0])
        new -= written + heard - int(positions[0, 0])
    changed = dict(given)
    if 0 < new < ids.shape[1]:  # `generate` goes on where the cache ends, and the conversation is longer than that
        changed["input_ids"] = ids[:, -new:]
        positions = None if positions is None else positions[:, -new:]
    if mask is not None:
        changed["attention_mask"] = torch.cat([held.kept.to(mask.dtype), mask[:, held.full :]], 1)
    elif not bool(held.kept.all()):
        seen = held.kept.new_ones(batch, heard + changed["input_ids"].shape[1])
        changed["attention_mask"] = torch.cat([held.kept, seen], 1)
    if positions is not None:
        changed["position_ids"] = positions - held.shorter[:, None]
    return changed
