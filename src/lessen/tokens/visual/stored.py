"""Prunings and poolings of visual tokens as they are stored: JSON values beside the weights, put back when loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lessen.errors import InputError
from lessen.stored.base import StoredPatch, stored
from lessen.stored.checks import whole
from lessen.tokens.visual.before import POOL_MARK, PoolPatch, pool_pictures
from lessen.tokens.visual.inside import MARK, VisualPatch, prune_visual_tokens
from lessen.tokens.visual.pictures import Grid
from lessen.tokens.visual.plan import VisualPruning

CHILD, POOLED = "visual_pruning", "picture_pooling"


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


@stored
class StoredPooling(StoredPatch):
    """A child of the model that holds no tensor, only the grid that pictures are averaged to before the projector."""

    kind = "picture-pooling"
    not_exported = (
        "pictures are averaged before its projector, and prompts become shorter for it, which no file format says; "
        "export the model without this step and pool where it runs"
    )

    def __init__(self, target: Grid, grid: Grid | None = None) -> None:
        super().__init__()
        self.target, self.grid = target, grid

    def config(self) -> dict[str, Any]:
        """Return target and grid, rows and columns each."""
        return {"target": list(self.target), "grid": None if self.grid is None else list(self.grid)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> StoredPooling:
        """Build from the JSON form. Raises ValueError or TypeError for values that make no sense."""
        target, grid = _pair("target", config["target"]), config["grid"]
        return cls(target, None if grid is None else _pair("grid", grid))

    def attach(self, model: nn.Module) -> PoolPatch:
        """Patch `model` and become its child, so that an artifact records it. Raises as `pool_pictures`."""
        patch = pool_pictures(model, self.target, self.grid)
        model.add_module(POOLED, self)
        return patch


def _pair(name: str, value: Any) -> Grid:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise TypeError(f"{name} = {value!r} is no pair of rows and columns")
    rows, columns = (whole(name, one, 1, 1 << 16) for one in value)
    return rows, columns


def pooling_of(model: nn.Module) -> PoolPatch | None:
    """Return the pooling that is in place in `model`, or None."""
    patch = model.__dict__.get(POOL_MARK)
    return patch if isinstance(patch, PoolPatch) else None


def pruning_of(model: nn.Module) -> VisualPatch | None:
    """Return the pruning that is in place in `model`, or None."""
    patch = model.__dict__.get(MARK)
    return patch if isinstance(patch, VisualPatch) else None
