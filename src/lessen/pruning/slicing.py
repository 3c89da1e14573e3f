"""Carrying a choice out: plain smaller layers in the place of the large ones, and what layers say of themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.norms import is_norm
from lessen.architectures.parts import Stack
from lessen.pruning.choice import Choice
from lessen.pruning.depth import configured, depth_names, drop_blocks
from lessen.pruning.layout import Layer, Layout
from lessen.pruning.width import cut_inputs, cut_outputs, read_stream, slice_width
from lessen.stored.pruned_shape import PrunedShape

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
KEYS = ("num_kv_heads", "num_key_value_heads", "kv_heads")
INNER = ("all_head_size", "inner_dim")
HIDDEN = ("intermediate_size", "ffn_dim", "hidden_dim", "d_ff", "ffn_hidden_size")
WIDTH = ("hidden_size", "d_model", "dim")
NAME = "pruned_shape"


def carry_out(layout: Layout, choice: Choice, dense: dict[str, int], uniform: bool = False) -> nn.Module:
    """Slice the model in place and return it, with the patch that notes its counts.

    Args:
        dense: parameters and multiply-adds that shares refer to; kept from an earlier step where there was one.
        uniform: say the new widths in the configuration too; they must be the same in all blocks.

    Raises:
        BudgetError: a part would be left without anything.
        InputError: a block is of another kind than the one whose place it takes, or the stream cannot be read.
    """
    choice.check(layout)
    model = layout.model
    streams = {path: (read_stream(layout, path), kept) for path, kept in choice.width.items()}
    modules: dict[str, dict[str, int]] = {}
    for layer in layout.layers:
        modules |= _slice_layer(layer, choice)
    for stream, kept in streams.values():
        slice_width(stream, kept)
        plain_norms(model)
    places: dict[str, str] = {}
    lists: dict[str, list[int]] = {}
    for path, kept in choice.layers.items():
        found, numbers = drop_blocks(model, layout.stacks[path], kept)
        places |= found
        modules = _moved(modules, places, path)
        for where, said in numbers.items():
            modules.setdefault(where, {}).update(said)
        lists[layout.stacks[path].owner.path] = kept.nonzero()[:, 0].tolist()
    earlier = model._modules.pop(NAME, None)
    if isinstance(earlier, PrunedShape):
        lists = earlier.lists | {
            where: [earlier.lists[where][n] for n in now] if where in earlier.lists else now
            for where, now in lists.items()
        }
        modules = _moved(earlier.modules_said, places, *choice.layers) | modules
        dense = dense | earlier.dense
    depths = {path: len(stack.blocks) for path, stack in layout.stacks.items()}
    depths = earlier.depths if isinstance(earlier, PrunedShape) else depths
    configs = earlier.configs_said if isinstance(earlier, PrunedShape) else {}
    for path, stack in layout.stacks.items():
        said = _config_numbers(layout, stack, choice, uniform, len(model.get_submodule(path)))  # type: ignore[arg-type]
        place = configured(model, stack.owner.path)[0]
        configs = {**configs, place: {**configs.get(place, {}), **said}}
    configs = {path: said for path, said in _with_root(model, configs).items() if said}
    PrunedShape(modules, configs, lists, dense, depths).attach(model)
    return model


def _moved(modules: dict[str, dict[str, int]], places: dict[str, str], *stacks: str) -> dict[str, dict[str, int]]:
    """Return numbers by the paths that blocks have after others were dropped; those of dropped ones are left out."""
    moved: dict[str, dict[str, int]] = {}
    for path, numbers in modules.items():
        stack = next((one for one in stacks if path.startswith(f"{one}.")), None)
        if stack is None:
            moved[path] = numbers
            continue
        number, _, inner = path[len(stack) + 1 :].partition(".")
        new = places.get(f"{stack}.{number}")
        if new is not None:
            moved[f"{new}.{inner}" if inner else new] = numbers
    return moved


def _slice_layer(layer: Layer, choice: Choice) -> dict[str, dict[str, int]]:
    said: dict[str, dict[str, int]] = {}
    attention, feeding = layer.block.attention, layer.block.feed_forward
    kept = choice.heads.get(layer.path)
    if kept is not None and attention is not None and not bool(kept.all()):
        groups = kept.nonzero()[:, 0]
        queries = attention.heads // attention.kv_heads
        heads = (groups[:, None] * queries + torch.arange(queries)).flatten()
        columns = attention.rows("query")[heads].flatten()
        cut_outputs(attention.query.module, columns)
        cut_inputs(attention.output.module, columns)
        for part, name in ((attention.key, "key"), (attention.value, "value")):
            cut_outputs(part.module, attention.rows(name)[groups].flatten())  # type: ignore[arg-type]
        holder = attention.query.path.rpartition(".")[0]
        counts = {HEADS: len(heads), KEYS: len(groups), INNER: len(columns)}
        for path, module in _said_by(layer, attention.path, holder, attention.module):
            said |= _numbers(module, path, counts, said)
    units = choice.units.get(layer.path)
    if units is not None and feeding is not None and not bool(units.all()):
        rows = [feeding.rows("gate"), feeding.rows("up")] if feeding.fused else [feeding.rows("up")]
        cut_outputs(feeding.up.module, torch.cat([one[units] for one in rows]))
        if feeding.gate is not None and not feeding.fused:
            cut_outputs(feeding.gate.module, units)
        cut_inputs(feeding.down.module, units)
    return said


def _said_by(layer: Layer, path: str, holder: str, module: Any) -> list[tuple[str, Any]]:
    """Return the modules that say how many heads there are: the attention, and what holds its projections."""
    inner = holder[len(layer.path) :].strip(".")
    other = layer.block.module.get_submodule(inner) if inner else layer.block.module
    return [(path, module)] if other is module else [(path, module), (holder, other)]


def _numbers(
    module: Any, path: str, counts: dict[tuple[str, ...], int], said: dict[str, dict[str, int]]
) -> dict[str, dict[str, int]]:
    found = {
        name: count
        for names, count in counts.items()
        for name in names
        if isinstance(vars(module).get(name), int) and not isinstance(vars(module).get(name), bool)
    }
    return {path: {**said.get(path, {}), **found}} if found else {}


def _config_numbers(
    layout: Layout, stack: Stack, choice: Choice, uniform: bool, depth: int
) -> dict[str, int]:  # fmt: skip
    """Return what the stack's configuration shall say now: the depth always, widths where they are the same."""
    config = configured(layout.model, stack.owner.path)[1]
    if config is None:
        return {}
    said: dict[str, int] = {}
    if depth != len(stack.blocks):
        said = dict.fromkeys(depth_names(config, stack.owner.path, depth), depth)
    if stack.path in choice.width:
        said |= {name: int(choice.width[stack.path].sum()) for name in WIDTH if getattr(config, name, 0) == stack.width}
    if uniform:
        layer = layout.of(stack.path)[0]
        attention = layer.block.attention
        if layer.path in choice.units:
            units = int(choice.units[layer.path].sum())
            said |= dict.fromkeys(hidden_names(config, stack, layer.hidden), units)
        if attention is not None and layer.path in choice.heads:
            groups = int(choice.heads[layer.path].sum())
            each = attention.heads // attention.kv_heads
            said |= {name: each * groups for name in ("num_attention_heads",) if hasattr(config, name)}
            said |= {name: groups for name in ("num_key_value_heads",) if hasattr(config, name)}
        if attention is not None and says_head_width(config):
            said["head_dim"] = attention.head_dim
    return said


def says_head_width(config: Any) -> bool:
    """Tell whether a configuration holds the width of a head as a number of its own, not as width / heads."""
    return hasattr(config, "head_dim") and not isinstance(getattr(type(config), "head_dim", None), property)


def hidden_names(config: Any, stack: Stack, hidden: int) -> list[str]:
    """Return the names under which a configuration says the `hidden` units of a stack's feed-forward layers."""
    names = (*HIDDEN, f"{stack.owner.path.rpartition('.')[2]}_ffn_dim")
    found = [name for name in names if getattr(config, name, 0) == hidden]
    unsaid = hasattr(config, "n_inner") and config.n_inner in (None, hidden)  # GPT-2: None is 4 x width
    return found + ["n_inner"] * unsaid


def _with_root(model: Any, configs: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return numbers with those that all stacks say alike and the model's own configuration says too (T5)."""
    inner = [said for path, said in configs.items() if path]
    root = getattr(model, "config", None)
    if len(inner) < 2 or root is None:
        return configs
    shared = {name: value for name, value in inner[0].items() if all(said.get(name) == value for said in inner)}
    own = {name: value for name, value in shared.items() if name in HIDDEN and hasattr(root, name)}
    return {**configs, "": {**configs.get("", {}), **own}}


# -- norms -----------------------------------------------------------------------------------------------------------
def plain_norms(model: nn.Module) -> None:
    """Put torch's RMS norm in the place of a library's own class where it computes the same, so that files hold it."""
    for path, module in list(model.named_modules()):
        if is_norm(module) and not isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            made = _as_rms(module)
            if made is not None:
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, made)


@torch.no_grad()
def _as_rms(module: Any) -> nn.RMSNorm | None:
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or not isinstance(eps, float) or getattr(module, "bias", None) is not None:
        return None
    made = nn.RMSNorm(len(weight), eps=eps, device=weight.device, dtype=weight.dtype)
    made.weight = module.weight
    draw = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    same = torch.allclose(module(draw), made(draw), atol=1e-5, rtol=1e-4)
    return made.train(module.training) if same else None
