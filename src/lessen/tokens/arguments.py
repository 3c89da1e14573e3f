"""What a host hands to a block beside its tokens: what has no effect is taken, the rest is refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lessen.errors import InputError

REPORTS = frozenset({"output_hidden_states", "return_dict"})
"""Arguments that say what a model gives back and not what it computes; a block has nothing to do with them."""


def require_only_tokens(block: nn.Module, others: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Raise InputError when a block is handed a mask, positions or anything else that changes what it computes.

    Args:
        others: positional arguments after the tokens.
        keywords: arguments by name; None and False switch nothing on.
    """
    if all(_is_off(value) for value in others) and all(_is_off(keywords[n]) or n in REPORTS for n in keywords):
        return
    names = list(inspect.signature(inspect.unwrap(type(block).forward)).parameters)[2:]
    given = [names[i] if i < len(names) else f"argument {i + 2}" for i, v in enumerate(others) if not _is_off(v)]
    given += [name for name, value in keywords.items() if not _is_off(value) and name not in REPORTS]
    what = f"{type(block).__name__} was handed {', '.join(given)}"
    if not any("mask" in name for name in given):
        raise InputError(f"{what}: reduced tokens cannot follow that; call the model without, or remove the patch")
    if torch.compiler.is_compiling():
        raise InputError(
            f"{what} while the model is traced: the host builds a mask then even for a full batch, and whether it "
            "hides anything cannot be read from a trace; export the model unpatched, or a tower that builds no mask"
        )
    raise InputError(
        f"{what}: the batch is padded, causal or masked, and tokens move when they are reduced; batch images of one "
        "size without a mask, or remove the patch"
    )


def required_arguments(block: nn.Module) -> list[str]:
    """Return what the block's forward needs beside the tokens."""
    parameters = list(inspect.signature(inspect.unwrap(type(block).forward)).parameters.values())[2:]
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind in named]


def _is_off(value: Any) -> bool:
    return value is None or value is False
