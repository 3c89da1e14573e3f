"""What a host hands to a block beside its tokens: what reduced tokens can follow is read, the rest refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.tower_block import Positions
from lessen.errors import InputError

REPORTS = frozenset({"output_hidden_states", "return_dict"})
"""Arguments that say what a model gives back and not what it computes; a block has nothing to do with them."""
MASKS = frozenset({"attention_mask", "attn_mask"})
POSITIONS = "position_embeddings"


@dataclass(frozen=True)
class Handed:
    """What a block was handed beside its tokens."""

    mask: Tensor | None = None
    positions: Positions | None = None

    def same(self, other: Handed) -> bool:
        """Tell whether two blocks were handed the same."""
        return _same(self.mask, other.mask) and all(
            _same(one, two) for one, two in zip(self.positions or (), other.positions or (), strict=False)
        )


def read_arguments(
    block: nn.Module, others: Sequence[Any], keywords: Mapping[str, Any], takes: frozenset[str]
) -> Handed:
    """Return the mask and the positions that a block is handed.

    Args:
        others: positional arguments after the tokens.
        keywords: arguments by name; None and False switch nothing on.
        takes: the names that the block's family can follow.

    Raises:
        InputError: it is handed anything else that changes what it computes.
    """
    if not others and not keywords:
        return Handed()
    names = list(inspect.signature(inspect.unwrap(type(block).forward)).parameters)[2:]
    given = {names[i] if i < len(names) else f"argument {i + 2}": value for i, value in enumerate(others)}
    given |= {name: value for name, value in keywords.items() if name not in REPORTS}
    given = {name: value for name, value in given.items() if not _is_off(value)}
    mask = next((given.pop(name) for name in list(given) if name in MASKS and name in takes), None)
    positions = given.pop(POSITIONS, None) if POSITIONS in takes else None
    if not given:
        return Handed(mask, positions)
    what = f"{type(block).__name__} was handed {', '.join(given)}"
    if not any("mask" in name for name in given):
        raise InputError(f"{what}: reduced tokens cannot follow that; call the model without, or remove the patch")
    raise InputError(
        f"{what}: the batch is padded, causal or masked, and tokens move when they are reduced; batch images of one "
        "size without a mask, or remove the patch"
    )


def require_only_tokens(block: nn.Module, others: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Raise InputError when a block is handed a mask, positions or anything else that changes what it computes."""
    read_arguments(block, others, keywords, frozenset())


def real_tokens(mask: Tensor, tokens: int, protected: int, block: nn.Module) -> Tensor:
    """Return which tokens of each picture a mask of padding leaves, boolean [B,N].

    Args:
        mask: [B,1,N,N] or [B,1,1,N], boolean (True: seen) or added to logits (0: seen). While a model is traced its
            values cannot be read, and it is taken to hide the same keys from every query.

    Raises:
        InputError: it hides other keys from some queries (causal, windowed, packed), hides leading tokens, weighs keys
            instead of hiding them, or is no mask of these tokens.
    """
    what = f"{type(block).__name__} was handed a mask"
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[-1] != tokens or mask.shape[2] not in (1, tokens):
        raise InputError(f"{what} of shape {list(mask.shape)}, which is no mask of {tokens} padded tokens a picture")
    seen = mask if mask.dtype == torch.bool else mask > HALF_HIDDEN
    real = seen[:, 0, 0]
    if torch.compiler.is_compiling():
        return real
    if mask.dtype != torch.bool and bool((seen & (mask != 0)).any()):
        raise InputError(f"{what} that weighs keys instead of hiding padding; reduced tokens cannot follow that")
    if not bool((seen == seen[:, :, :1]).all()):
        raise InputError(
            f"{what} that hides other keys from some tokens than from others (causal, windowed or packed attention), "
            "and tokens move when they are reduced; only padding can be followed"
        )
    if not bool(real[:, :protected].all()):
        raise InputError(f"{what} that hides the class token or registers; only patches may be padding")
    return real


HALF_HIDDEN = -5e3
"""An added mask below this hides a key; attention libraries add -1e4 or less."""


def required_arguments(block: nn.Module) -> list[str]:
    """Return what the block's forward needs beside the tokens."""
    parameters = list(inspect.signature(inspect.unwrap(type(block).forward)).parameters.values())[2:]
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind in named]


def _is_off(value: Any) -> bool:
    return value is None or value is False


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if one is None or other is None:
        return False
    return one.shape == other.shape and (torch.compiler.is_compiling() or one.data_ptr() == other.data_ptr())
