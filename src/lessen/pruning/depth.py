"""Taking whole blocks out of a model, and what the rest then says of its depth."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lessen.architectures.parts import Part, Stack
from lessen.errors import InputError

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
NUMBERS = ("layer_idx", "layer_id", "layer_number")
"""Names under which a layer knows its place, by which it finds its cache."""


def drop_blocks(model: nn.Module, stack: Stack, kept: Tensor) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Drop the blocks that `kept`, bool [blocks], does not mark.

    Returns:
        Where each block that stays stood and stands, and the numbers that its layers got, by path.

    Raises:
        InputError: a block would take the place of one of another kind.
    """
    blocks: Any = model.get_submodule(stack.path)
    chosen = kept.nonzero()[:, 0].tolist()
    check_alike(stack.owner.module, blocks, chosen)
    short = [blocks[number] for number in chosen]
    made = nn.ModuleList(short) if isinstance(blocks, nn.ModuleList) else nn.Sequential(*short)
    parent, _, name = stack.path.rpartition(".")
    setattr(model.get_submodule(parent), name, made)
    numbers: dict[str, dict[str, int]] = {}
    for place, old in enumerate(chosen):
        for inner in renumber(made[place], old, place):
            path, _, attribute = inner.rpartition(".")
            numbers.setdefault(f"{stack.path}.{place}.{path}".rstrip("."), {})[attribute] = place
    settle(model, stack.owner, len(blocks), chosen)
    return {f"{stack.path}.{old}": f"{stack.path}.{place}" for place, old in enumerate(chosen)}, numbers


def configs_of(model: nn.Module) -> list[Any]:
    """Return the distinct configurations that parts of a model carry."""
    found = {id(config): config for m in model.modules() if (config := getattr(m, "config", None)) is not None}
    return [config for config in found.values() if not callable(config)]


def check_alike(owner: nn.Module, blocks: Any, kept: list[int]) -> None:
    """Refuse where a kept block would stand in the place of one of another kind. Raises InputError."""
    for place, old in enumerate(kept):
        kinds = [type(blocks[place]), type(blocks[old])]
        for config in configs_of(owner):
            listed = getattr(config, "layer_types", None)
            if isinstance(listed, (list, tuple)) and len(listed) == len(blocks):
                kinds += [listed[place], listed[old]]
        names = [[name for name, _ in blocks[number].named_parameters()] for number in (place, old)]
        if (
            kinds[0] is not kinds[1]
            or names[0] != names[1]
            or any(a != b for a, b in zip(kinds[2::2], kinds[3::2], strict=True))
        ):
            raise InputError(
                f"block {old} of {type(owner).__name__} is of another kind than block {place}, whose place it would "
                "take; choose another number of layers or another rule"
            )


def renumber(block: nn.Module, old: int, new: int) -> list[str]:
    """Let the layers of a block know their new place; returns the paths of the attributes that say it."""
    found: list[str] = []
    for path, module in block.named_modules():
        for name in NUMBERS:
            if getattr(module, name, None) == old:
                setattr(module, name, new)
                found.append(f"{path}.{name}")
    return found


def configured(model: nn.Module, path: str) -> tuple[str, Any]:
    """Return the configuration of the module at `path`, or of the nearest module around it that has one, and where.

    ("", None) where there is none.
    """
    while True:
        config = getattr(model.get_submodule(path), "config", None)
        if (config is not None and not callable(config)) or not path:
            return path, config
        path = path.rpartition(".")[0]


def depth_names(config: Any, owner: str, depth: int) -> list[str]:
    """Return the names under which a configuration says the depth of the stack that the module at `owner` calls."""
    own = f"{owner.rpartition('.')[2]}_layers"  # BART, Whisper: encoder_layers and decoder_layers
    names = (own,) if hasattr(config, own) else DEPTHS
    return [name for name in names if getattr(config, name, None) == depth]


def settle(model: nn.Module, owner: Part, depth: int, kept: list[int]) -> None:
    """Let the configurations around and under the module that calls the blocks say the new depth."""
    around = configured(model, owner.path)[1]
    for config in {id(one): one for one in (*configs_of(owner.module), around) if one is not None}.values():
        for name in depth_names(config, owner.path, depth):
            setattr(config, name, len(kept))
        listed = getattr(config, "layer_types", None)
        if isinstance(listed, (list, tuple)) and len(listed) == depth:
            config.layer_types = [listed[place] for place in kept]
