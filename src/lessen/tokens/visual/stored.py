"""A pruning of visual tokens as it is stored: JSON values beside the weights, put back when a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lessen.errors import InputError
from lessen.stored.base import StoredPatch, stored
from lessen.tokens.visual.inside import MARK, VisualPatch, prune_visual_tokens
from lessen.tokens.visual.plan import VisualPruning

CHILD = "visual_pruning"


@stored
class StoredPruning(StoredPatch):
    """A child of the model that holds no tensor, only which visual tokens go between its layers."""

    kind = "visual-pruning"
    not_exported = (
        "visual tokens are left out between its layers while a prompt is read, which no file format says; export the "
        "model without this step and prune where it runs"
    )

    def __init__(self, pruning: VisualPruning) -> None:
        super().__init__()
        self.pruning = pruning

    def config(self) -> dict[str, Any]:
        """Return the pruning's JSON form."""
        return self.pruning.config()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> StoredPruning:
        """Build from the JSON form. Raises ValueError or TypeError for values that make no sense."""
        try:
            return cls(VisualPruning.from_config(config))
        except InputError as error:
            raise ValueError(str(error)) from error

    def attach(self, model: nn.Module) -> VisualPatch:
        """Patch `model` and become its child, so that an artifact records it. Raises as `prune_visual_tokens`."""
        patch = prune_visual_tokens(model, self.pruning)
        model.add_module(CHILD, self)
        return patch


def pruning_of(model: nn.Module) -> VisualPatch | None:
    """Return the pruning that is in place in `model`, or None."""
    patch = model.__dict__.get(MARK)
    return patch if isinstance(patch, VisualPatch) else None
