"""What the parts of a host model are called here: paths and modules, the same words for every family.

    Parts ─ stacks ─ Stack ─ blocks ─ Block ─ attention     ─ query, key, value, output: Part
          ─ head                             ─ cross           (of a decoder that reads an encoder)
          ─ projections                      ─ feed_forward  ─ up, gate, down: Part
                                             ─ norms         ─ before_attention, ...: Part

Nothing here changes a model; `find.find_parts` reads Transformers, `cnn.find_convolutions` convolutional networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Projection = Literal["query", "key", "value"]
Kind = Literal["decoder", "encoder", "encoder-decoder", "dual", "vision-language"]
Modality = Literal["text", "vision", "audio", "other"]


@dataclass(frozen=True)
class Part:
    """One module that does one job, and where it is."""

    path: str
    module: Any
    parameter: str = "weight"
    """Name of its matrix; torch's own attention keeps three projections in the parameter `in_proj_weight`."""
    bias: str = "bias"

    @property
    def transposed(self) -> bool:
        """Whether the matrix is [in, out] (GPT-2's Conv1D) and not [out, in]."""
        return type(self.module).__name__ == "Conv1D"

    @property
    def inputs(self) -> int:
        """Width of what goes in."""
        return linear_sizes(self.module, self.parameter)[0]

    @property
    def outputs(self) -> int:
        """Width of what comes out."""
        return linear_sizes(self.module, self.parameter)[1]

    def __str__(self) -> str:
        """Return path and class."""
        return f"{self.path} ({type(self.module).__name__})"


@dataclass(frozen=True)
class Attention:
    """One attention layer. `query`, `key` and `value` are the same part where one projection holds all three."""

    path: str
    module: Any
    query: Part
    key: Part
    value: Part
    output: Part
    heads: int
    kv_heads: int
    head_dim: int
    grouped: bool = False
    """Rows of a fused projection lie group by group (GPT-NeoX, Bloom, Falcon), not all queries first."""
    causal: bool = False
    query_norm: Part | None = None
    key_norm: Part | None = None

    @property
    def fused(self) -> bool:
        """Whether one projection holds queries, keys and values."""
        return self.query == self.value

    def rows(self, name: Projection) -> Tensor:
        """Return which outputs of the projection `name` belong to which head, int64 [heads or kv_heads, head_dim].

        Query head h reads key and value head h // (heads // kv_heads).
        """
        count = self.heads if name == "query" else self.kv_heads
        if not self.fused:
            return torch.arange(count * self.head_dim).view(count, self.head_dim)
        queries = self.heads // self.kv_heads
        if self.grouped:
            every = torch.arange(self.kv_heads * (queries + 2) * self.head_dim)
            every = every.view(self.kv_heads, queries + 2, self.head_dim)
            if name == "query":
                return every[:, :queries].reshape(self.heads, self.head_dim)
            return every[:, queries + (name == "value")]
        first = {"query": 0, "key": self.heads, "value": self.heads + self.kv_heads}[name] * self.head_dim
        return torch.arange(first, first + count * self.head_dim).view(count, self.head_dim)


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward layer: `down(act(up(x)))`, or `down(act(gate(x)) * up(x))`.

    Gate and up are the same part where one projection holds both: the gate's `hidden` outputs first.
    """

    path: str
    up: Part
    gate: Part | None
    down: Part
    hidden: int

    @property
    def fused(self) -> bool:
        """Whether one projection holds gate and up."""
        return self.gate is not None and self.gate == self.up

    def rows(self, name: Literal["up", "gate"]) -> Tensor:
        """Return the outputs of the projection `name` that make the hidden units, int64 [hidden]."""
        first = self.hidden if self.fused and name == "up" else 0
        return torch.arange(first, first + self.hidden)


@dataclass(frozen=True)
class Norms:
    """Norms of a block by what they stand next to; None where a block has no such norm.

    `before_*` norms what a layer reads. `after_*` norms what it gives: the branch (Gemma 2), or, if `on_residual`, the
    sum of branch and residual (BERT). Both layers read the block's input in a `parallel` block (GPT-J, Falcon).
    """

    before_attention: Part | None = None
    after_attention: Part | None = None
    before_cross: Part | None = None
    after_cross: Part | None = None
    before_feed_forward: Part | None = None
    after_feed_forward: Part | None = None
    on_residual: bool = False
    parallel: bool = False


@dataclass(frozen=True)
class Block:
    """One element of a stack."""

    index: int
    path: str
    module: nn.Module
    attention: Attention | None
    cross: Attention | None
    feed_forward: FeedForward | None
    experts: Part | None
    """Experts that are not linear layers but packed tensors (mixtures of experts); `feed_forward` is what all share."""
    norms: Norms

    @property
    def linears(self) -> dict[str, Part]:
        """The linear layers of attention and feed-forward by path, each once, in the order of the vocabulary."""
        found: list[Part] = []
        for attention in (self.attention, self.cross):
            if attention is not None:
                found += [attention.query, attention.key, attention.value, attention.output]
        if self.feed_forward is not None:
            layer = self.feed_forward
            found += [layer.up, *([layer.gate] if layer.gate else []), layer.down]
        return {part.path: part for part in found}


@dataclass(frozen=True)
class Stack:
    """Blocks that are called one after another, and what surrounds them."""

    path: str
    """Path of the list of blocks."""
    owner: Part
    """The module that calls the blocks."""
    blocks: tuple[Block, ...]
    modality: Modality
    causal: bool
    width: int
    embedding: Part | None
    """Token embedding, or the convolution that cuts patches or frames."""
    positions: Part | None
    """Learned positions, where they are a module."""
    rotary: Part | None
    final_norm: Part | None


@dataclass(frozen=True)
class Parts:
    """A host model known by its parts."""

    kind: Kind
    stacks: Mapping[str, Stack]
    """By role: `decoder`; `encoder`; `encoder` and `decoder`; `text` and `vision`; `vision` and `decoder`."""
    head: Part | None = None
    """What gives logits over the vocabulary or over classes."""
    tied: bool = False
    """Whether the head's matrix is the token embedding."""
    projections: Mapping[str, Part] = field(default_factory=dict)
    """`text` and `vision` of a dual encoder; `projector` of a vision-language model."""

    @property
    def stack(self) -> Stack:
        """The only stack, or the decoder's."""
        return self.stacks["decoder"] if "decoder" in self.stacks else next(iter(self.stacks.values()))


def linear_sizes(module: Any, parameter: str = "weight") -> tuple[int, int]:
    """Return (inputs, outputs) of a linear layer, plain, stored or Conv1D; (0, 0) for anything else."""
    if parameter != "weight":
        return int(getattr(module, parameter).shape[1]), int(getattr(module, parameter).shape[0])
    if isinstance(getattr(module, "in_features", None), int) and isinstance(getattr(module, "out_features", None), int):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return 0, 0


def outside(model: nn.Module, stacks: Sequence[Stack]) -> list[Part]:
    """Return every module of `model` that is not part of a list of blocks, in the order of definition."""
    lists = [stack.path for stack in stacks]
    return [
        Part(path, module)
        for path, module in model.named_modules()
        if path and not any(path == own or path.startswith(f"{own}.") for own in lists)
    ]
