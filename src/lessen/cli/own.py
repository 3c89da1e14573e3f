"""The user's own model on the command line."""

from __future__ import annotations

from torch import nn

from lessen.errors import ConfigError
from lessen.usercode import call, is_own, named

__all__ = ["is_own", "own_model"]


def own_model(text: str) -> nn.Module:
    """Return the model at FILE.py:NAME or MODULE:NAME in eval mode; a class or function is called without arguments.

    Raises:
        ConfigError: it cannot be imported or made, or is no module.
    """
    value = named(text)
    made = call(text, value) if callable(value) and not isinstance(value, nn.Module) else value
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{text} is a {type(made).__name__}, not a torch.nn.Module")
    return made.eval()
