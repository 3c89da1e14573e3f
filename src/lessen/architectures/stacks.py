"""Finding the stacks of a model: lists of Transformer blocks, and what stands around each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from lessen.architectures.block import has_attention, read_block
from lessen.architectures.norms import is_norm
from lessen.architectures.parts import Modality, Part, Stack
from lessen.errors import NothingMatchedError

NOT_TOKENS = ("position", "token_type", "segment", "relative", "language")
"""Embeddings whose names say that their rows are no tokens."""


def find_stacks(model: nn.Module) -> list[Stack]:
    """Return the stacks of `model` in the order of definition.

    Raises:
        NothingMatchedError: no list of blocks with attention; names what the lists hold.
        InputError: a block of a stack cannot be read.
    """
    lists = _block_lists(model)
    if not lists:
        kinds = sorted({type(m[0]).__name__ for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)})
        raise NothingMatchedError(
            "no stack of Transformer blocks: looked for a list of modules that each hold projections of queries, keys "
            f"and values; the lists of {type(model).__name__} hold {', '.join(kinds) or 'nothing'}"
        )
    return [_stack(model, path, blocks, [other for other in lists if other != path]) for path, blocks in lists.items()]


def _block_lists(model: nn.Module) -> dict[str, Any]:
    """Return the lists of blocks by path: innermost where all elements attend, else outermost where some do."""
    found: dict[str, Any] = {}
    partly: dict[str, Any] = {}
    for path, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or not len(module):
            continue
        attending = [has_attention(element) for element in module]
        if all(attending):
            found[path] = module
        elif sum(attending) > 0 and len({type(element) for element in module}) < len(module):
            partly[path] = module
    whole = {path: blocks for path, blocks in found.items() if not any(_under(other, path) for other in found)}
    mixed = {
        path: blocks
        for path, blocks in partly.items()
        if not any(_under(path, other) or _under(other, path) for other in (*found, *partly))
    }
    order = [path for path, _ in model.named_modules() if path in whole or path in mixed]
    return {path: whole.get(path, mixed.get(path)) for path in order}


def _under(path: str, parent: str) -> bool:
    return path != parent and (not parent or path.startswith(f"{parent}."))


def _stack(model: nn.Module, path: str, blocks: Any, others: list[str]) -> Stack:
    owner_path = path.rpartition(".")[0]
    owner = Part(owner_path, model.get_submodule(owner_path) if owner_path else model)
    final_norm = _final_norm(model, path)
    read = tuple(
        read_block(block, f"{path}.{number}", number, normed=final_norm is not None)
        for number, block in enumerate(blocks)
    )
    attention = next(block.attention for block in read if block.attention is not None)
    modality, embedding = _embedding(model, path, others)
    positions = _positions(model, path, others, embedding)
    return Stack(
        path,
        owner,
        read,
        modality,
        attention.causal or _reads_left(owner.module),
        attention.query.inputs,
        embedding,
        positions,
        _rotary(model, path),
        final_norm,
    )


def _reads_left(owner: Any) -> bool:
    """Tell whether a tower is causal though its attention layers do not know it (CLIP's texts)."""
    config = getattr(owner, "config", None)
    return getattr(config, "model_type", "") == "clip_text_model"


def _ancestors(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules around a list, the nearest first."""
    while path:
        path = path.rpartition(".")[0]
        yield path, model.get_submodule(path) if path else model


def _around(model: nn.Module, path: str, others: list[str]) -> Iterator[list[tuple[str, nn.Module]]]:
    """Yield, for each module around a list, what it holds outside of all lists of blocks."""
    for parent, module in _ancestors(model, path):
        named = ((f"{parent}.{inner}".strip("."), child) for inner, child in module.named_modules() if inner)
        yield [(p, m) for p, m in named if not any(p == other or _under(p, other) for other in (path, *others))]


def is_embedding(module: Any) -> bool:
    """Tell whether a module is a table of rows, plain or stored."""
    return isinstance(getattr(module, "num_embeddings", None), int) and hasattr(module, "embedding_dim")


def _embedding(model: nn.Module, path: str, others: list[str]) -> tuple[Modality, Part | None]:
    """Return what a stack reads, and the module that makes its first hidden states."""
    for around in _around(model, path, others):
        for inner, module in around:
            if is_embedding(module) and not any(word in inner.rpartition(".")[2] for word in NOT_TOKENS):
                return "text", Part(inner, module)
        for inner, module in around:
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                return "vision", Part(inner, module)
            if isinstance(module, nn.Conv1d):
                return "audio", Part(inner, module)
    return "other", None


def _positions(model: nn.Module, path: str, others: list[str], embedding: Part | None) -> Part | None:
    """Return the learned positions that lie no farther away than the embedding."""
    for around in _around(model, path, others):
        for inner, module in around:
            name = inner.rpartition(".")[2]
            if is_embedding(module) and ("position" in name or name == "wpe"):
                return Part(inner, module)
        if embedding is not None and any(inner == embedding.path for inner, _ in around):
            return None
    return None


def _rotary(model: nn.Module, path: str) -> Part | None:
    for parent, module in _ancestors(model, path):
        for name, child in module.named_children():
            if "rotary" in name.lower() or "rotary" in type(child).__name__.lower():
                return Part(f"{parent}.{name}".strip("."), child)
    return None


def _final_norm(model: nn.Module, path: str) -> Part | None:
    """Return the norm after the last block: a child of a module around the list, not of what makes its inputs."""
    for parent, module in _ancestors(model, path):
        for name, child in module.named_children():
            said = name.lower()
            if is_norm(child) and "emb" not in said and not said.startswith("pre"):
                return Part(f"{parent}.{name}".strip("."), child)
    return None
