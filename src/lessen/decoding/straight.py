"""The layers of Llama-type models as straight lines of tensor operations, without the host's Python in between.

A host's forward spends time beside the arithmetic: modules in modules, decorators, norms of seven operations, rotations
of queries and keys apart. That is a tenth of a pass with few rows in float32 on a model of 135 M parameters, and more
where weights are few bits. Here a block is about twenty operations:

    x ─ norm ─ q k v ─ rotate q and k together ─ write k v ─ attend ─ o ─ + x ─ norm ─ act(gate) * up ─ down ─ +

Linear layers and the embedding are called as the modules they are, so packed and stored forms run, and their hooks.
Everything else is read from the model's parts (`lessen.architectures`). Only blocks whose class is known to be this
line are taken, and the engine is tried against the model's own decoding like every other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lessen.architectures.find import find_parts
from lessen.architectures.parts import Block, Part
from lessen.decoding.attention import Rule, windowed
from lessen.decoding.ragged import RaggedEngine, RaggedPass
from lessen.errors import InputError

_BLOCKS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
"""Norm before each branch, halves rotated against each other, gated feed-forward, no factors on branches."""


@dataclass(frozen=True)
class _Site:
    """A place of a module tree; what stands there may be exchanged (packed layers) between passes."""

    siblings: dict[str, Any]
    name: str

    @property
    def module(self) -> Any:
        return self.siblings[self.name]


@dataclass(frozen=True)
class _Line:
    """One block: its sites, its norms by weight and epsilon, and its attention."""

    query: _Site
    key: _Site
    value: _Site
    output: _Site
    gate: _Site
    up: _Site
    down: _Site
    activation: Any
    norms: tuple[tuple[Tensor, float], tuple[Tensor, float]]
    head_norms: tuple[tuple[Tensor, float], tuple[Tensor, float]] | None
    heads: int
    head_dim: int
    scale: float
    rule: Rule


class StraightEngine(RaggedEngine):
    """Unpadded passes through a Llama-type model in float32, block after block.

    Raises:
        InputError: the model's blocks are of another class, something watches them, or they are not float32.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        view = self.view
        if view.dtype != torch.float32:
            raise InputError(f"{type(model).__name__} is not float32; its own operations decide how it rounds")
        stack = find_parts(view, "decoder").stack
        names = {type(block.module).__name__ for block in stack.blocks}
        known = all(type(block.module).__module__.startswith("transformers.models.") for block in stack.blocks)
        if not known or not names <= _BLOCKS or stack.embedding is None or stack.rotary is None:
            raise InputError(f"{type(model).__name__} has blocks that are not known to be one line: {sorted(names)}")
        self._lines = [_line(view, block) for block in stack.blocks]
        self._embedding, self._head = _site(view, stack.embedding), _head_site(view)
        self._rotary, self._norm = stack.rotary.module, _norm(stack.final_norm)
        called = {id(self._embedding.module), id(self._head.module), id(self._rotary)}
        for line in self._lines:
            called |= {id(site.module) for site in vars(line).values() if isinstance(site, _Site)} | {
                id(line.activation)
            }
        _check_unwatched(view, called)

    def _forward(self, plan: RaggedPass, tokens: Tensor, places: Tensor, keep: dict[str, Tensor]) -> Tensor:
        hidden = self._embedding.module(tokens)[0]
        cosine, sine = (part[0][:, None] for part in self._rotary(hidden[None], places))
        half = sine.shape[-1] // 2
        sine = torch.cat((-sine[..., :half], sine[..., half:]), -1)  # turns halves that were exchanged, not negated
        for index, line in enumerate(self._lines):
            normed = _normed(hidden, line.norms[0])
            hidden += line.output.module(_attended(plan, index, line, normed, cosine, sine))
            normed = _normed(hidden, line.norms[1])
            gated = line.activation(line.gate.module(normed))
            hidden += line.down.module(gated.mul_(line.up.module(normed)))
        if keep:
            hidden = hidden[keep["logits_to_keep"]]
        logits: Tensor = self._head.module(_normed(hidden, self._norm))
        return logits


def _attended(plan: RaggedPass, index: int, line: _Line, normed: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return attention of normed rows (rows, width) as (rows, heads * head_dim), keys and values written."""
    rows = normed.shape[0]
    query, key = line.query.module(normed), line.key.module(normed)
    value = line.value.module(normed).view(rows, -1, line.head_dim)
    if line.head_norms is not None:
        query = _normed(query.view(rows, -1, line.head_dim), line.head_norms[0]).flatten(1)
        key = _normed(key.view(rows, -1, line.head_dim), line.head_norms[1]).flatten(1)
    both = torch.cat((query, key), 1).view(rows, -1, line.head_dim)
    half = line.head_dim // 2
    turned = torch.cat((both[..., half:], both[..., :half]), -1)
    both = torch.addcmul(both * cosine, turned, sine).transpose(0, 1)
    plan.store(index, both[line.heads :], value.transpose(0, 1))
    return plan.over_pieces(both[: line.heads], line.rule, line.scale).reshape(rows, -1)


def _normed(rows: Tensor, norm: tuple[Tensor, float]) -> Tensor:
    return functional.rms_norm(rows, (rows.shape[-1],), norm[0], norm[1])


def _line(view: Any, block: Block) -> _Line:
    attention, layer, norms = block.attention, block.feed_forward, block.norms
    if attention is None or layer is None or layer.gate is None or layer.fused or attention.fused:
        raise InputError(f"block {block.path} has no separate projections and gate")
    own: Any = attention.module
    head_norms = None
    if attention.query_norm is not None and attention.key_norm is not None:
        head_norms = (_norm(attention.query_norm), _norm(attention.key_norm))
    return _Line(
        query=_site(view, attention.query),
        key=_site(view, attention.key),
        value=_site(view, attention.value),
        output=_site(view, attention.output),
        gate=_site(view, layer.gate),
        up=_site(view, layer.up),
        down=_site(view, layer.down),
        activation=view.get_submodule(layer.path).act_fn,
        norms=(_norm(norms.before_attention), _norm(norms.before_feed_forward)),
        head_norms=head_norms,
        heads=attention.heads,
        head_dim=attention.head_dim,
        scale=float(own.scaling),
        rule=windowed(_window(view, block.index)),
    )


def _window(view: Any, index: int) -> int | None:
    """Return the window of one block, as its configuration says."""
    config = view.config.get_text_config()
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    inside = kinds[index] == "sliding_attention" if kinds else getattr(config, "use_sliding_window", True)
    return int(window) if window is not None and inside else None


def _site(view: Any, part: Part) -> _Site:
    parent, _, name = part.path.rpartition(".")
    return _Site(view.get_submodule(parent)._modules, name)


def _head_site(view: Any) -> _Site:
    head = view.get_output_embeddings()
    for parent in view.modules():
        for name, child in parent._modules.items():
            if child is head and head is not None:
                return _Site(parent._modules, name)
    raise InputError(f"{type(view).__name__} has no head over the vocabulary")


def _norm(part: Part | None) -> tuple[Tensor, float]:
    epsilon = getattr(part.module, "variance_epsilon", None) if part is not None else None
    if part is None or epsilon is None or not type(part.module).__name__.endswith("RMSNorm"):
        raise InputError("a norm of the model is no root mean square norm")
    return part.module.weight, float(epsilon)


def _check_unwatched(view: nn.Module, called: set[int]) -> None:
    """Refuse a model in which a hook, or a forward put on one module, would be passed by."""
    for name, module in view.named_modules():
        watched = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        if watched and id(module) not in called:
            raise InputError(f"something watches or replaces the forward of {name or 'the model'}")
