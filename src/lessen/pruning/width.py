"""The residual stream of a stack: what writes into it, what reads it, and taking dimensions out of all of that.

    embedding, positions, class token --> stream --> norm --> q k v, up gate --> ... --> o, down --> stream --> head

Whatever stands outside of the blocks and has the stream's width must be known here by what it is: a table, a norm, a
layer that reads the stream, a convolution that cuts patches, or a tensor of the model's own such as a class token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.norms import is_norm
from lessen.architectures.parts import Part, Stack, linear_sizes, outside
from lessen.architectures.stacks import is_embedding
from lessen.errors import InputError
from lessen.pruning.layout import Layout, is_plain_linear


@dataclass(frozen=True)
class Stream:
    """All that touches one residual stream."""

    width: int
    tables: tuple[Part, ...]
    """Embeddings, whose columns are dimensions."""
    writers: tuple[Part, ...]
    """Linear layers whose outputs are dimensions."""
    readers: tuple[Part, ...]
    """Linear layers whose inputs are dimensions."""
    norms: tuple[Part, ...]
    cutters: tuple[Part, ...]
    """Convolutions whose output channels are dimensions."""
    bare: tuple[tuple[Any, str], ...]
    """Modules with a tensor of their own [..., width], and its name."""


def read_stream(layout: Layout, path: str) -> Stream:
    """Return what touches the stream of the stack at `path`.

    Raises:
        InputError: the model has several stacks, or something of that width whose part is not known.
    """
    stack, model = layout.stacks[path], layout.model
    if len(layout.stacks) > 1:
        raise InputError(
            f"{type(model).__name__} has {len(layout.stacks)} stacks of blocks; the width of the stream is pruned for "
            "models of one"
        )
    writers, readers, norms, inner = _inside(stack)
    tables: list[Part] = []
    cutters: list[Part] = []
    bare: list[tuple[Any, str]] = []
    for part in outside(model, [stack]):
        module = part.module
        if is_embedding(module):
            tables += [part] if module.embedding_dim == stack.width else []
        elif is_norm(module):
            norms += [part] if _is_wide(module, stack.width) else []
        elif isinstance(module, nn.Conv2d):
            cutters += [part] if module.out_channels == stack.width else []
        elif linear_sizes(module)[0]:
            if linear_sizes(module)[0] == stack.width:
                readers.append(_plain(part))
        else:
            bare += _own(module, stack.width)
    bare += _own(model, stack.width)
    for block in stack.blocks:
        for inner_path, module in block.module.named_modules():
            if module in inner or not module._parameters:
                continue
            if any(p is not None and stack.width in p.shape for p in module._parameters.values()):
                raise InputError(
                    f"{block.path}.{inner_path} ({type(module).__name__}) is as wide as the stream and its part is not "
                    "known: the width of this model cannot be pruned"
                )
    return Stream(stack.width, *map(tuple, (tables, writers, readers, norms, cutters, bare)))  # type: ignore[arg-type]


def _inside(stack: Stack) -> tuple[list[Part], list[Part], list[Part], set[nn.Module]]:
    writers: list[Part] = []
    readers: list[Part] = []
    norms: list[Part] = []
    known: set[nn.Module] = set()
    for block in stack.blocks:
        attention, feeding, found = block.attention, block.feed_forward, block.norms
        if block.cross is not None or block.experts is not None:
            raise InputError(f"{block.path} has cross-attention or experts: the width of its stream cannot be pruned")
        if attention is not None:
            readers += [attention.query, *([] if attention.fused else [attention.key, attention.value])]
            writers.append(attention.output)
            known |= {n.module for n in (attention.query_norm, attention.key_norm) if n is not None}
        if feeding is not None:
            readers += [feeding.up, *([feeding.gate] if feeding.gate and not feeding.fused else [])]
            writers.append(feeding.down)
        norms += [
            part
            for part in (
                found.before_attention, found.after_attention, found.before_feed_forward, found.after_feed_forward
            )
            if part is not None
        ]  # fmt: skip
    unique = {part.path: part for part in norms}
    for part in (*writers, *readers):
        _plain(part)
    known |= {part.module for part in (*writers, *readers, *unique.values())}
    return writers, readers, list(unique.values()), known


def _plain(part: Part) -> Part:
    if not is_plain_linear(part.module):
        raise InputError(f"{part} reads or writes the stream and is no plain linear layer; its width cannot be pruned")
    return part


def _is_wide(norm: Any, width: int) -> bool:
    weight = getattr(norm, "weight", None)
    return weight is not None and int(weight.numel()) == width


def _own(module: Any, width: int) -> list[tuple[Any, str]]:
    return [
        (module, name)
        for name, tensor in module._parameters.items()
        if tensor is not None and tensor.shape[-1] == width
    ]


# -- slicing ---------------------------------------------------------------------------------------------------------
def slice_width(stream: Stream, kept: Tensor) -> None:
    """Take dimensions out of everything that touches a stream, in place; tied tensors stay tied."""
    done: dict[int, nn.Parameter] = {}
    for part in stream.tables:
        _cut(part.module, "weight", -1, kept, done)
        part.module.embedding_dim = int(kept.sum())
    for part in stream.readers:
        cut_inputs(part.module, kept, done)
    for part in stream.writers:
        cut_outputs(part.module, kept, done)
    for part in stream.norms:
        shrink_norm(part.module, kept)
    for part in stream.cutters:
        for name in ("weight", "bias"):
            _cut(part.module, name, 0, kept, done)
        part.module.out_channels = int(kept.sum())
    for module, name in stream.bare:
        _cut(module, name, -1, kept, done)


def cut_inputs(layer: nn.Linear, kept: Tensor, done: dict[int, nn.Parameter] | None = None) -> None:
    """Keep the inputs of a linear layer that `kept` marks or names, in place."""
    _cut(layer, "weight", 1, kept, {} if done is None else done)
    layer.in_features = layer.weight.shape[1]


def cut_outputs(layer: nn.Linear, kept: Tensor, done: dict[int, nn.Parameter] | None = None) -> None:
    """Keep the outputs of a linear layer that `kept` marks or names, in place."""
    done = {} if done is None else done
    _cut(layer, "weight", 0, kept, done)
    _cut(layer, "bias", 0, kept, done)
    layer.out_features = layer.weight.shape[0]


def shrink_norm(norm: Any, kept: Tensor) -> None:
    """Keep the dimensions of a layer norm or RMS norm that `kept` marks, in place."""
    for name in ("weight", "bias"):
        if getattr(norm, name, None) is not None:
            _cut(norm, name, 0, kept, {})
    shape = getattr(norm, "normalized_shape", None)
    if shape is not None:
        norm.normalized_shape = (int(kept.sum()),)


def _cut(module: Any, name: str, axis: int, kept: Tensor, done: dict[int, nn.Parameter]) -> None:
    before = module._parameters.get(name)
    if before is None:
        return
    if id(before) not in done:
        where = kept.nonzero()[:, 0] if kept.dtype == torch.bool else kept
        with torch.no_grad():
            values = before.index_select(axis, where.to(before.device)).contiguous()
        done[id(before)] = nn.Parameter(values, requires_grad=before.requires_grad)
    module._parameters[name] = done[id(before)]
