"""What of a Transformer can be taken out whole: groups of heads, feed-forward units, blocks, residual width.

group   the query heads that read one key and value head, with it: one head where there are as many of each
unit    one hidden unit of a feed-forward layer: rows of up and gate, a column of down
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lessen.architectures.find import find_parts
from lessen.architectures.parts import Attention, Block, Part, Stack, linear_sizes
from lessen.errors import InputError, NothingMatchedError


@dataclass(frozen=True)
class Layer:
    """One block and how many of each it has."""

    stack: str
    """Path of the list that it stands in."""
    block: Block
    groups: int
    """Groups of heads; 0 where heads cannot be taken out."""
    hidden: int
    """Feed-forward units; 0 where there is no such layer."""

    @property
    def path(self) -> str:
        """Path of the block."""
        return self.block.path

    @property
    def columns(self) -> int:
        """Columns of the output projection that belong to one group."""
        attention = self.block.attention
        assert attention is not None
        return attention.heads // attention.kv_heads * attention.head_dim


@dataclass(frozen=True)
class Layout:
    """A model's prunable parts."""

    model: nn.Module
    stacks: dict[str, Stack]
    """By path of the list of blocks."""
    layers: tuple[Layer, ...]

    def of(self, stack: str) -> list[Layer]:
        """Return the layers of a stack."""
        return [layer for layer in self.layers if layer.stack == stack]


def read_layout(model: nn.Module) -> Layout:
    """Return what can be taken out of a model, which is not changed.

    Raises:
        NothingMatchedError: there is no stack of Transformer blocks.
        InputError: heads do not divide by key and value heads, or something is in the way: a hook, a parametrisation,
            a weight that two layers share, a layer that is no plain linear one.
    """
    parts = find_parts(model)
    stacks = {stack.path: stack for stack in parts.stacks.values()}
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    layers = tuple(
        _layer(path, block, owners, _biases_all(stack)) for path, stack in stacks.items() for block in stack.blocks
    )
    if not any(layer.groups or layer.hidden for layer in layers):
        raise NothingMatchedError(f"{type(model).__name__} has neither heads nor feed-forward units to take out")
    return Layout(model, stacks, layers)


def within(layout: Layout, named: Callable[[str], bool]) -> Layout:
    """Return the layout in which only heads and units go whose every linear layer is named, by its path."""

    def kept(layer: Layer) -> Layer:
        attention, feeding = layer.block.attention, layer.block.feed_forward
        heads = () if attention is None else (attention.query, attention.key, attention.value, attention.output)
        units = () if feeding is None else (feeding.up, *([feeding.gate] if feeding.gate else []), feeding.down)
        return replace(
            layer,
            groups=layer.groups if all(named(part.path) for part in heads) else 0,
            hidden=layer.hidden if all(named(part.path) for part in units) else 0,
        )

    return replace(layout, layers=tuple(map(kept, layout.layers)))


def _layer(stack: str, block: Block, owners: Counter[int], heads_stay: bool) -> Layer:
    groups = 0 if block.attention is None else _groups(block.attention, owners)
    groups = 0 if heads_stay else groups
    hidden = 0
    if block.feed_forward is not None:
        layer = block.feed_forward
        for part in (layer.up, *([layer.gate] if layer.gate else []), layer.down):
            check_linear(part, owners)
        hidden = layer.hidden
    return Layer(stack, block, groups, hidden)


def _groups(attention: Attention, owners: Counter[int]) -> int:
    if attention.heads % attention.kv_heads:
        raise InputError(
            f"{attention.path} has {attention.heads} heads for {attention.kv_heads} key and value heads, which do not "
            "divide them: heads cannot be taken out with those that they read"
        )
    if attention.fused or _shared_bias(attention.module):
        return 0
    for part in (attention.query, attention.key, attention.value, attention.output):
        check_linear(part, owners)
    for norm in (attention.query_norm, attention.key_norm):
        if norm is not None and norm.module.weight.numel() != attention.head_dim:
            return 0  # a norm over all heads together
    return attention.kv_heads


def _biases_all(stack: Stack) -> bool:
    """Tell whether what calls the blocks gives all of them one table of position biases, by head (MPNet)."""
    owner = f"{stack.owner.path}." if stack.owner.path else ""
    inside = stack.path[len(owner) :]
    return any(
        path.endswith("relative_attention_bias") and not path.startswith(f"{inside}.")
        for path, _ in stack.owner.module.named_modules()
    )


def _shared_bias(module: Any) -> bool:
    """Tell whether heads have position biases that all blocks share (T5), so that they can only go together."""
    return hasattr(module, "has_relative_attention_bias")


def check_linear(part: Part, owners: Counter[int]) -> None:
    """Refuse a layer that cannot be sliced. Raises InputError."""
    module, kind = part.module, type(part.module).__name__
    if is_parametrized(module):
        raise InputError(f"{part.path} is parametrised; remove the parametrisation before pruning")
    if module._forward_hooks or module._forward_pre_hooks:
        raise InputError(f"{part.path} carries forward hooks, which would see other widths; remove them before pruning")
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        raise InputError(f"{part.path} is a {kind}, not a plain linear layer; prune before other steps change layers")
    for name, tensor in module._parameters.items():
        if tensor is not None and owners[id(tensor)] > 1:
            raise InputError(f"{part.path}.{name} is tied to another layer; untie it before pruning")


def first_tensor(value: Any) -> Tensor:
    """Return the hidden states among what a block was given or returned. Raises InputError."""
    found = value[0] if isinstance(value, (tuple, list)) and value else value
    if not isinstance(found, Tensor):
        raise InputError(f"a block works on a {type(found).__name__}, not on hidden states")
    return found


def is_plain_linear(module: nn.Module) -> bool:
    """Tell whether a module is one of torch's linear layers."""
    return isinstance(module, nn.Linear) and linear_sizes(module)[0] > 0
