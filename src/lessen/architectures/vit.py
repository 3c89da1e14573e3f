"""The places of a Transformer block's parts in each model family: one small table, checked when a model is patched.

    block(x) = let y = x + scale1(attention(norm1(x))) in y + scale2(mlp(norm2(y)))

The reduction happens between the two residuals, where no forward hook reaches; so a block is described here and run
by `tokens/patch.py`. Families are known by class name; a block that has timm's names is taken by its shape, and any
other by its structure, if every part of it with parameters has a place in the equation above.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lessen.architectures.block import read_block
from lessen.errors import InputError, NothingMatchedError


@dataclass(frozen=True)
class Family:
    """Attribute names of one kind of block; an empty name means that the block has no such part."""

    name: str
    norm1: str
    attention: str
    norm2: str
    mlp: str
    scale1: str = ""
    scale2: str = ""
    drop1: str = ""
    drop2: str = ""
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "out_proj"
    fused: str = ""
    """Name of one projection that holds query, key and value side by side."""
    class_tokens: int = 1
    has_class: bool = True
    bias_argument: str = "attention_mask"
    """The attention's argument for what is added to the logits; empty: it takes none, and is run from its parts."""
    widening: str = ""
    """First layer of an MLP whose last one, `mlp`, adds the residual itself, as early Hugging Face blocks do."""
    rotary: bool = False
    """Whether the attention turns queries and keys by `position_embeddings`, cosines and sines of each patch."""


FAMILIES = {
    "Block": Family("plain", "norm1", "attn", "norm2", "mlp", bias_argument="bias"),
    "ViTLayer": Family(
        "vit", "layernorm_before", "attention", "layernorm_after", "mlp", drop1="dropout", drop2="dropout",
        output="o_proj",
    ),
    "CLIPEncoderLayer": Family("clip", "layer_norm1", "self_attn", "layer_norm2", "mlp"),
    "SiglipEncoderLayer": Family(
        "siglip", "layer_norm1", "self_attn", "layer_norm2", "mlp", class_tokens=0, has_class=False
    ),
    "Dinov2Layer": Family(
        "dinov2", "norm1", "attention", "norm2", "mlp", "layer_scale1", "layer_scale2", "drop_path", "drop_path",
        output="o_proj",
    ),
    "Dinov2WithRegistersLayer": Family(
        "dinov2-registers", "norm1", "attention", "norm2", "mlp", "layer_scale1", "layer_scale2", "drop_path",
        "drop_path", output="o_proj",
    ),
    "DINOv3ViTLayer": Family(
        "dinov3", "norm1", "attention", "norm2", "mlp", "layer_scale1", "layer_scale2", "drop_path", "drop_path",
        output="o_proj", rotary=True,
    ),
    "Siglip2EncoderLayer": Family(
        "siglip2", "layer_norm1", "self_attn", "layer_norm2", "mlp", class_tokens=0, has_class=False
    ),
    "VideoMAELayer": Family(
        "videomae", "layernorm_before", "attention", "layernorm_after", "output", query="attention.query",
        key="attention.key", value="attention.value", output="output.dense", class_tokens=0, has_class=False,
        bias_argument="", widening="intermediate",
    ),
}  # fmt: skip
TIMM = Family(
    "timm",
    "norm1",
    "attn",
    "norm2",
    "mlp",
    "ls1",
    "ls2",
    "drop_path1",
    "drop_path2",
    fused="qkv",
    output="proj",
    bias_argument="attn_mask",
)
BLOCK_ARGUMENTS = {"self", "x", "hidden_states", "attention_mask", "head_mask", "output_attentions", "kwargs"}
SCALES = ("layer_scale1", "layer_scale2")
LEADING = ("cls_token", "distillation_token", "register_tokens")
"""Parameters of embeddings that stand before the patches, [1, tokens, width]."""
READ_CLASS = frozenset({"ViT", "DeiT", "ViTMSN", "AST", "Vivit"})
"""Hugging Face families whose classifiers read leading tokens only."""
FEATURE_GETTERS = frozenset({"FeatureGetterNet", "FeatureListNet", "FeatureDictNet", "FeatureHookNet"})
"""What timm wraps around a model that is to give feature maps."""
POSITIONAL = (
    "rope",
    "rel_pos",
    "relative_position_bias_table",
    "relative_position_bias",
    "window_size",
    "rotary_emb",
    "shared_rel_pos",
    "rel_pos_bias",
    "rotary_pos_emb",
    "rope_embeddings",
)
"""Attributes of attention layers, blocks and owners whose positions or windows would be lost by moving tokens."""


KNOWN = {family.name for family in (*FAMILIES.values(), TIMM)}


@dataclass
class Tower:
    """A run of consecutive blocks of one family, and what surrounds it."""

    family: Family
    owner: nn.Module
    """The module that calls the blocks."""
    path: str
    blocks: list[nn.Module]
    protected: int
    pools_patches: bool
    """Whether something after the blocks reads all patches (mean or attention pooling)."""
    width: int = 0
    hidden: int = 0
    dense: bool = False
    """Whether feature maps or hidden states of inner blocks are read, patch by patch."""


def family_of(block: nn.Module) -> Family | None:
    """Return the family of a block, or None."""
    family = FAMILIES.get(type(block).__name__)
    named = family and all(hasattr(block, part) for part in (family.norm1, family.attention, family.mlp))
    if family is not None and named and _holds(getattr(block, family.attention), family.key):
        return family
    timm_parts = (TIMM.norm1, TIMM.attention, TIMM.norm2, TIMM.mlp)
    if all(hasattr(block, part) for part in timm_parts) and hasattr(getattr(block, TIMM.attention), TIMM.fused):
        optional = {part: getattr(TIMM, part) for part in ("scale1", "scale2", "drop1", "drop2")}
        held: dict[str, Any] = {part: name if hasattr(block, name) else "" for part, name in optional.items()}
        return replace(TIMM, **held)
    return _by_structure(block)


def part_of(module: nn.Module, path: str) -> Any:
    """Return what stands at a dotted path inside a module."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _holds(module: nn.Module, path: str) -> bool:
    try:
        return isinstance(part_of(module, path), nn.Module)
    except AttributeError:
        return False


def _by_structure(block: nn.Module) -> Family | None:
    """Return the family of a block that computes the equation above and nothing else, or None.

    Its forward takes hidden states, and a mask only where none need be given: positions that are handed to it would be
    lost, and a mask that it needs means padded batches.
    """
    takes = inspect.signature(inspect.unwrap(type(block).forward)).parameters
    needed = [one for one in takes.values() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if not set(takes) <= BLOCK_ARGUMENTS or len(needed) != 2:
        return None
    try:
        read = read_block(block, "", 0, normed=True)
    except InputError:
        return None
    attention, layer, norms = read.attention, read.feed_forward, read.norms
    if attention is None or layer is None or read.cross or read.experts or attention.fused or attention.query_norm:
        return None
    if norms.parallel or norms.after_attention or not (norms.before_attention and norms.before_feed_forward):
        return None
    names = (norms.before_attention.path, attention.path, norms.before_feed_forward.path, layer.path)
    scales = tuple(name for name in SCALES if hasattr(block, name))
    held = {name for name, child in block.named_children() if any(True for _ in child.parameters())}
    if any("." in name or not name for name in names) or held != {*names, *scales} or len(scales) not in (0, 2):
        return None
    drop = "dropout" if isinstance(getattr(block, "dropout", None), nn.Dropout) else ""
    parts = (attention.query, attention.key, attention.value, attention.output)
    query, key, value, output = (part.path.removeprefix(f"{attention.path}.") for part in parts)
    norm1, own, norm2, mlp = names
    scale1, scale2 = scales or ("", "")
    return Family(
        type(block).__name__,
        norm1,
        own,
        norm2,
        mlp,
        scale1,
        scale2,
        drop,
        drop,
        query,
        key,
        value,
        output,
        class_tokens=0,
        has_class=False,
    )


def find_tower(model: nn.Module) -> Tower:
    """Return the only tower of `model`.

    Raises:
        NothingMatchedError: no list of blocks of a known family; names what the lists hold.
        InputError: several towers (name one by passing that submodule), or attention that depends on positions.
    """
    found = list(_towers(model))
    if not found:
        kinds = sorted({type(m[0]).__name__ for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)})
        known = ", ".join([*FAMILIES, "timm blocks"])
        raise NothingMatchedError(
            f"no vision tower of a known family: the model's block lists hold {', '.join(kinds) or 'nothing'}; "
            f"known blocks: {known}"
        )
    if len(found) > 1:
        paths = ", ".join(repr(tower.path) for tower in found)
        raise InputError(f"the model holds {len(found)} towers ({paths}); pass the submodule that is meant")
    tower = found[0]
    _refuse_positional(tower)
    return tower


def _towers(model: nn.Module) -> Iterator[Tower]:
    for path, owner in model.named_modules():
        for name, blocks in owner.named_children():
            if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or not len(blocks):
                continue
            families = {family_of(block) for block in blocks}
            if len(families) == 1 and (family := families.pop()) is not None:
                if _is_text(path):
                    continue
                yield _tower(model, family, owner, f"{path}.{name}".strip("."), list(blocks))


def _is_text(path: str) -> bool:
    """Leave text encoders alone: CLIP uses one block class for both towers."""
    return any(part.startswith("text") for part in path.split("."))


def _tower(model: nn.Module, family: Family, owner: nn.Module, path: str, blocks: list[nn.Module]) -> Tower:
    registers = _registers(model)
    attention = getattr(blocks[0], family.attention)
    projection = part_of(attention, family.fused or family.key)
    width = int(projection.in_features)
    before = {name: p.shape[1] for name, p in _leading(model).items()} if family.name not in KNOWN else {}
    leading = int(getattr(owner, "num_prefix_tokens", sum(before.values()) or family.class_tokens + registers))
    has_class = (family.has_class or "cls_token" in before) and leading > 0
    if leading and hasattr(owner, "num_prefix_tokens"):  # timm has towers whose only leading tokens are registers
        has_class = bool(getattr(owner, "has_class_token", getattr(owner, "cls_token", None) is not None))
    dense = _reads_maps(model)
    pools = not has_class or dense or _pools_patches(model, owner)
    family = replace(family, class_tokens=leading, has_class=has_class)
    hidden = _hidden(blocks[0], family, width)
    return Tower(family, owner, path, blocks, leading, pools, width, hidden, dense)


def _hidden(block: nn.Module, family: Family, width: int) -> int:
    """Return the hidden width of an MLP of two layers with as many weights; gated ones have three."""
    names = [name for name in (family.widening, family.mlp) if name]
    linears = [m for name in names for m in getattr(block, name).modules() if hasattr(m, "out_features")]
    return sum(int(m.in_features) * int(m.out_features) for m in linears) // (2 * width)


def _registers(model: nn.Module) -> int:
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            return int(getattr(config, "num_register_tokens", 0) or 0)
    return 0


def _leading(model: nn.Module) -> dict[str, Tensor]:
    """Return the tokens that the model's embeddings put before the patches, by the parameter's own name."""
    named = ((path.rpartition(".")[2], parameter) for path, parameter in model.named_parameters())
    return {name: parameter for name, parameter in named if name in LEADING and parameter.dim() == 3}


def _pools_patches(model: nn.Module, owner: nn.Module) -> bool:
    if any(getattr(module, "global_pool", "token") not in ("token", "") for module in (model, owner)):
        return True
    heads = (type(module).__name__.partition("For") for module in model.modules() if hasattr(module, "config"))
    return any(kind.endswith("Classification") and name not in READ_CLASS for name, _, kind in heads)


def _reads_maps(model: nn.Module) -> bool:
    """Tell whether a model makes feature maps, or picks hidden states: by what Hugging Face and timm call such models.

    A `...For...` that does not classify reads patches: depth, segmentation, masked pictures, language with pictures.
    """
    for module in model.modules():
        name = type(module).__name__
        task = name.partition("For")[2].partition("With")[0] if hasattr(module, "config") else ""
        if name.endswith("Backbone") or name in FEATURE_GETTERS or (task and not task.endswith("Classification")):
            return True
    return False


def _refuse_positional(tower: Tower) -> None:
    for block in (*tower.blocks, tower.owner):
        attention = getattr(block, tower.family.attention, None)
        for name in POSITIONAL:
            if getattr(attention, name, None) is not None or _uses(block, name):
                raise InputError(
                    f"{tower.path}: {type(block).__name__} uses {name}, and positions are lost when tokens move; "
                    "windowed, rotary and relative-position attention cannot be reduced"
                )


def _uses(module: nn.Module, name: str) -> bool:
    value = getattr(module, name, None)
    return isinstance(value, (Tensor, nn.Module)) or bool(value)
