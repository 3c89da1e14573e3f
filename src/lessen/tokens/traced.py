"""What a model that is traced was asked to hide: hosts build a mask then even for a full batch, and it has no values.

model(pictures)               no mask given: whatever the host hands to its blocks hides nothing
model(pictures, mask [B,N])   a mask of padding: the host hides the same keys from every query
anything else                 cannot be told from a trace
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lessen.errors import InputError


class Asked:
    """Whether the call that is traced was given a mask; an object, so that a copied model has its own."""

    def __init__(self) -> None:
        self.nothing = False
        self.padding = False

    def mask(self, built: Tensor, block: nn.Module) -> Tensor | None:
        """Return the mask that a block has to follow, given the one the host built. Raises InputError if unknown."""
        if self.nothing:
            return None
        if self.padding:
            return built
        raise InputError(
            f"{type(block).__name__} was handed a mask while the model is traced, and whether it hides anything but "
            "padding cannot be read from a trace; export the model that was patched, without a mask or with one of "
            "[batch, tokens]"
        )


class MaskWatch:
    """A forward pre-hook of a module around the blocks."""

    def __init__(self, asked: Asked, module: nn.Module) -> None:
        self.asked = asked
        self.names = _arguments(module)

    def __call__(self, _module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Note what this module was given; one that is given a built mask leaves the note as it is."""
        if not torch.compiler.is_compiling():
            return
        given = {**dict(zip(self.names, arguments, strict=False)), **keywords}
        masks = [value for name, value in given.items() if _is_mask(name) and isinstance(value, Tensor)]
        if all(mask.dim() == 2 for mask in masks):
            self.asked.nothing, self.asked.padding = not masks, bool(masks)


def watch_masks(model: nn.Module, owner: nn.Module, asked: Asked) -> list[Any]:
    """Watch the modules from `model` to the owner of the blocks if one of them takes a mask; return the handles.

    Nobody can ask for anything to be hidden where none does, and then nothing needs to be watched.
    """
    around = [m for m in model.modules() if any(inner is owner for inner in m.modules())]
    if not any(_is_mask(name) for m in around for name in _arguments(m)):
        asked.nothing = True
        return []
    return [m.register_forward_pre_hook(MaskWatch(asked, m), with_kwargs=True) for m in around]


def _arguments(module: nn.Module) -> list[str]:
    return list(inspect.signature(inspect.unwrap(type(module).forward)).parameters)[1:]


def _is_mask(name: str) -> bool:
    return name.endswith(("attention_mask", "attn_mask"))
