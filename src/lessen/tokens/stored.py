"""A token reduction as it is stored: JSON values beside the weights, put back into the model when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lessen.stored.base import StoredPatch, stored
from lessen.tokens.patch import MARK, Patch, reduce_tokens
from lessen.tokens.reducers import Reducer, reducer_from

CHILD = "token_reduction"


@stored
class TokenReduction(StoredPatch):
    """A child of the model that holds no tensor, only which reducer runs in its tower."""

    kind = "token-reduction"

    def __init__(self, reducer: Reducer, restore: bool | None = None) -> None:
        super().__init__()
        self.reducer, self.restore = reducer, restore

    def config(self) -> dict[str, Any]:
        """Return the reducer's JSON form."""
        return {**self.reducer.config(), "restore": self.restore}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TokenReduction:
        """Build from the JSON form. Raises ValueError or TypeError for values that make no sense."""
        values = dict(config)
        restore = values.pop("restore", None)
        if restore is not None and not isinstance(restore, bool):
            raise ValueError(f"restore = {restore!r} makes no sense; it is true, false or null")
        return cls(reducer_from(values), restore)

    def attach(self, model: nn.Module, tokens: int | None = None, example: Any = None) -> Patch:
        """Patch `model` and become its child, so that an artifact records the reduction. Raises as `reduce_tokens`."""
        patch = reduce_tokens(model, self.reducer, restore=self.restore, tokens=tokens, example=example)
        self.restore = patch.restore
        model.add_module(CHILD, self)
        return patch


def patch_of(model: nn.Module) -> Patch | None:
    """Return the patch that is in place in `model`, or None."""
    patch = model.__dict__.get(MARK)
    return patch if isinstance(patch, Patch) else None


def detach(model: nn.Module) -> None:
    """Take the reduction out of `model`, if there is one."""
    patch = patch_of(model)
    if patch is not None:
        patch.remove()
    if CHILD in model._modules:
        del model._modules[CHILD]
