"""The user's own model on the command line."""

from __future__ import annotations

from torch import nn

from lessen.usercode import is_own, made

__all__ = ["is_own", "own_model"]


def own_model(text: str) -> nn.Module:
    """Return the model at FILE.py:NAME or MODULE:NAME in eval mode; a class or function is called without arguments.

    Raises:
        ConfigError: it cannot be imported or made, or is no module.
    """
    model: nn.Module = made(text, nn.Module, "torch.nn.Module", {})
    return model.eval()
