"""Attention of new tokens over what their own sequence has cached, by the mask rule that the model itself states.

transformers builds each mask from a rule over (query place, key place): causal, within a window, within a chunk. The
mask function registered here keeps the rule in place of a mask, so that every layer gets the rule the model meant for
it, wherever the model wrote it down, and no mask is larger than the block of queries at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lessen.architectures.loading import hugging_face
from lessen.errors import InputError

BLOCK = 512
"""Queries of a windowed prompt that are computed together."""

_STACKED = 256

_OWN = ("softcap", "s_aux", "sinks")
"""Arguments that do not depend on places; the model's own attention function is called with them."""

_HARMLESS = {
    "dropout", "scaling", "sliding_window", "is_causal", "position_ids", "output_attentions", "use_cache", "layer_idx",
    "cache_position", "deterministic", "cache", "past_key_values", "position_embeddings", "output_router_logits",
    "output_hidden_states", "return_dict",
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """Which key places a query place may look at: `allowed(query places, key places)` broadcasts to a bool tensor."""

    function: Callable[..., Any]

    def allowed(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return a bool tensor (queries, keys)."""
        none = torch.zeros((), dtype=torch.long, device=keys.device)
        found: Tensor = self.function(none, none, queries[:, None], keys[None, :])
        return found.expand(len(queries), len(keys))


def rule_in_place_of_mask(*_: Any, mask_function: Any = None, use_vmap: bool = False, **__: Any) -> Rule:
    """The mask function registered with transformers; see the module."""
    if mask_function is None or use_vmap:
        raise InputError("unpadded attention does not know masks that depend on the content")
    return Rule(mask_function)


@cache
def windowed(window: int | None) -> Rule:
    """Return the causal rule, within the last `window` places where one is given."""

    def function(_batch: Tensor, _head: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        seen = keys <= queries
        return seen if window is None else seen & (keys > queries - window)

    return Rule(function)


def rule_of(mask: Any, extras: dict[str, Any]) -> Rule:
    """Return the rule of one attention call. Raises InputError for a ready-made mask or an unknown argument."""
    for name, value in extras.items():
        if value is not None and name not in _HARMLESS and name not in _OWN and isinstance(value, (Tensor, float, int)):
            if isinstance(value, bool) or name.startswith(("cu_seq", "max_length")):
                continue
            raise InputError(f"unpadded attention does not know the model's {name!r}")
    if isinstance(mask, Rule):
        return mask
    if mask is not None:
        raise InputError("unpadded attention cannot use a mask that was built for one sequence")
    return windowed(extras.get("sliding_window"))


def own_arguments(extras: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments for which the model's own attention function is needed."""
    return {name: extras[name] for name in _OWN if extras.get(name) is not None}


def mask_of(allowed: Tensor, query: Tensor, keys: Tensor) -> Tensor:
    """Return the mask that `attend` takes from a bool (new, total) of what each query may look at."""
    groups = query.shape[0] // keys.shape[0]
    if groups * query.shape[1] > _STACKED:
        return allowed
    mask = torch.zeros(allowed.shape, dtype=query.dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, float("-inf")).repeat(groups, 1)


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None, causal: bool = False
) -> Tensor:
    """Return attention of queries (heads, new, width) over keys (kv heads, total, width) as (new, heads, width).

    Args:
        mask: from `mask_of`, the same for all layers of a pass; None where each query may look at all keys.
        causal: queries and keys are the same places, and each looks at those up to its own.
    """
    heads, new, width = query.shape
    kv_heads = keys.shape[0]
    groups = heads // kv_heads
    if causal and new > 1:
        out = scaled_dot_product_attention(
            query[None], keys[None], values[None], scale=scale, is_causal=True, enable_gqa=groups > 1
        )
    elif groups * new <= _STACKED:  # queries that share a key head are stacked as rows: keys need not be repeated
        stacked = query.reshape(1, kv_heads, groups * new, width)
        out = scaled_dot_product_attention(stacked, keys[None], values[None], attn_mask=mask, scale=scale)
    else:  # keys are repeated as views, and all heads share the mask
        own, shape = query.reshape(kv_heads, groups, new, width), (kv_heads, groups, -1, -1)
        out = scaled_dot_product_attention(
            own, keys[:, None].expand(shape), values[:, None].expand(shape), attn_mask=mask, scale=scale
        )
    return out.reshape(heads, new, values.shape[2]).transpose(0, 1)


def attend_in_blocks(query: Tensor, keys: Tensor, values: Tensor, rule: Rule, scale: float | None) -> Tensor:
    """Return the same under any rule for the last `new` of `total` places, block after block of queries.

    A block computes only the keys that it can see, so a window costs its own width and no mask of all places is made.
    """
    new, total = query.shape[1], keys.shape[1]
    places = torch.arange(total, device=keys.device)
    parts = []
    for start in range(0, new, BLOCK):
        queries = places[total - new + start : total - new + min(new, start + BLOCK)]
        allowed = rule.allowed(queries, places[: int(queries[-1]) + 1])
        seen = slice(int(allowed.any(0).to(torch.uint8).argmax()), allowed.shape[1])
        rows = slice(start, start + len(queries))
        own, mask = query[:, rows], mask_of(allowed[:, seen], query[:, rows], keys)
        parts.append(attend(own, keys[:, seen], values[:, seen], mask, scale))
    return torch.cat(parts)


def attend_as_the_model(
    module: Any, implementation: str, states: tuple[Tensor, Tensor, Tensor], allowed: Tensor, given: dict[str, Any]
) -> Tensor:
    """Return what the model's own attention function gives for one sequence, as (new, heads, width).

    Args:
        states: query (heads, new, width), keys and values (kv heads, total, width).
        given: further arguments of the attention function, such as `scaling`, `softcap` or `s_aux`.
    """
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function = hugging_face().AttentionInterface().get_interface(implementation, own)
    if function is None:
        raise InputError(f"{type(module).__name__} has no attention function of its own")
    mask = allowed[None, None]
    if implementation == "eager":
        lowest = torch.finfo(states[0].dtype).min
        mask = torch.zeros(mask.shape, dtype=states[0].dtype, device=mask.device).masked_fill_(~mask, lowest)
    out: Tensor = function(module, *(state[None] for state in states), mask, dropout=0.0, **given)[0]
    return out[0]
