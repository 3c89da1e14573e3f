"""Which indexes of a model a method may store in another form."""

from __future__ import annotations

from torch import nn

from lessen.methods.modules import ModuleMethod
from lessen.stored.vectors.flat import FlatVectors
from lessen.stored.vectors.staged import StagedVectors


def flat_indexes(method: ModuleMethod, model: nn.Module) -> list[FlatVectors]:
    """Return the float32 indexes where the method may act, but not those that are a stage of a smaller one.

    Raises:
        NothingMatchedError: there is none. ConfigError: a pattern of `only` or `skip` matches no module.
    """
    stages = {inner for one in model.modules() if isinstance(one, StagedVectors) for inner in one.modules()}
    found = [one for one in method.parts(model, FlatVectors) if one not in stages]
    if not found:
        raise method.nothing_matched(model)
    return found
