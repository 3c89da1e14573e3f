"""Readying a model to be called many times: forms without a kernel are decoded once, in place of at every forward.

stored form --> has a kernel?  -> panels, made at its first forward
            --> storage only   -> its dense weight beside the codes, float32 or the host's type: the fastest form that
                                  holds what it stands for exactly

What is held is counted (`measure.memory.resident_bytes`): a form that is storage only saves bytes on disk and on the
way into memory, and none while it is served.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lessen.stored.base import StoredModule


def storage_only(model: nn.Module) -> list[str]:
    """Return the paths of modules that no kernel reads here, in the order of the model."""
    return [path for path, module in model.named_modules() if _decodes(module)]


def serve(model: nn.Module) -> list[str]:
    """Let storage-only modules hold what they decode, until `release`; return their paths."""
    found, dtype = storage_only(model), _host_type(model)
    for path in found:
        module = model.get_submodule(path)
        assert isinstance(module, StoredModule)
        module.hold(dtype)
    return found


def release(model: nn.Module) -> None:
    """Let go of what `serve` let modules hold."""
    for module in model.modules():
        if isinstance(module, StoredModule):
            module.hold(None)


@contextmanager
def served(*models: nn.Module) -> Iterator[None]:
    """Serve models within a block."""
    for model in models:
        serve(model)
    try:
        yield
    finally:
        for model in models:
            release(model)


def _decodes(module: nn.Module) -> bool:
    return isinstance(module, StoredModule) and module.storage_only()


def _host_type(model: nn.Module) -> torch.dtype:
    """Return the type that the host computes in: that of its own parameters, float32 where it has none."""
    kinds = (one.dtype for one in model.parameters() if one.is_floating_point())
    return next(kinds, torch.float32)
