"""Reading a whole host model: which kind it is, and its parts by role."""

from __future__ import annotations

from typing import Any

from torch import nn

from lessen.architectures.dual import projections
from lessen.architectures.parts import Kind, Part, Parts, Stack, linear_sizes, outside
from lessen.architectures.stacks import find_stacks
from lessen.architectures.vlm import projector
from lessen.errors import InputError

CLASSIFIERS = ("classifier", "score", "cls_classifier", "head", "qa_outputs", "fc")


def find_parts(model: nn.Module, *kinds: Kind) -> Parts:
    """Return the parts of any Transformer that this room can read; the model is not changed.

    Args:
        kinds: the kinds that the caller can work with; none means any.

    Raises:
        NothingMatchedError: the model holds no stack of Transformer blocks; names what it holds.
        InputError: the stacks do not make a model of a known kind, a block cannot be read, or the kind is another.
    """
    stacks = find_stacks(model)
    parts = _read(model, stacks)
    if parts is None:
        paths = ", ".join(f"{stack.path} ({len(stack.blocks)} {stack.modality} blocks)" for stack in stacks)
        raise InputError(
            f"{type(model).__name__} holds {len(stacks)} stacks that make no known kind of model: {paths}; "
            "pass the submodule that is meant"
        )
    if kinds and parts.kind not in kinds:
        found = ", ".join(f"{role}: {stack.path}" for role, stack in parts.stacks.items())
        raise InputError(
            f"{type(model).__name__} is a {parts.kind} model ({found}); what is needed here is {' or '.join(kinds)}"
        )
    return parts


def _read(model: nn.Module, stacks: list[Stack]) -> Parts | None:
    crossing = [stack for stack in stacks if any(block.cross for block in stack.blocks)]
    by_modality = {stack.modality: stack for stack in stacks}
    if len(stacks) == 1:
        return _single(model, stacks[0])
    if len(stacks) != 2:
        return None
    if len(crossing) == 1:
        decoder = crossing[0]
        encoder = next(stack for stack in stacks if stack is not decoder)
        return Parts("encoder-decoder", {"encoder": encoder, "decoder": decoder}, *_head(model, decoder))
    if set(by_modality) != {"text", "vision"}:
        return None
    text, vision = by_modality["text"], by_modality["vision"]
    bridge, (head, tied) = projector(model, stacks), _head(model, text)
    if bridge or head is not None:
        return Parts("vision-language", {"vision": vision, "decoder": text}, head, tied, bridge)
    return Parts("dual", {"text": text, "vision": vision}, projections=projections(model, text, vision))


def _single(model: nn.Module, stack: Stack) -> Parts:
    head, tied = _head(model, stack)
    if stack.causal and stack.modality == "text":
        return Parts("decoder", {"decoder": stack}, head, tied)
    return Parts("encoder", {"encoder": stack}, head, tied)


def _head(model: nn.Module, stack: Stack) -> tuple[Part | None, bool]:
    """Return the layer that gives logits, over the vocabulary where there is one, and whether it is the embedding."""
    linears = [part for part in outside(model, [stack]) if linear_sizes(part.module)[0]]
    table = stack.embedding.module if stack.embedding is not None else None
    over_words = [part for part in linears if part.outputs == getattr(table, "num_embeddings", 0)]
    over_classes = [part for part in linears if part.path in CLASSIFIERS]
    head = next(iter(over_words[::-1] or over_classes), None)
    return head, head is not None and _same(head.module, table)


def _same(one: Any, other: Any) -> bool:
    return getattr(one, "weight", None) is not None and one.weight is getattr(other, "weight", None)
