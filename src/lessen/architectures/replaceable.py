"""What keeps any module from being changed or replaced: others who see it other than by calling its class's forward."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


def watched_by_others(module: nn.Module) -> str | None:
    """Return why a change of the module would be undone, lost on someone or seen by someone, or None."""
    if is_parametrized(module):
        return "is parametrised; remove the parametrisation first"
    if module._forward_hooks or module._forward_pre_hooks:
        return "carries forward hooks that a replacement would lose or mislead"
    return None
