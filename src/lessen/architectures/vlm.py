"""What is special about vision-language models: the module that brings pictures to the width of the language model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lessen.architectures.parts import Part, Stack, outside

NAMES = ("projector", "connector", "merger", "embed_vision", "qformer", "aligner")


def projector(model: nn.Module, stacks: Sequence[Stack]) -> dict[str, Part]:
    """Return `{"projector": part}`, the outermost module with a name that libraries give it, or nothing."""
    for part in outside(model, stacks):
        if any(name in part.path.rpartition(".")[2].lower() for name in NAMES):
            return {"projector": part}
    return {}
