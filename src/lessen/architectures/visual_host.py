"""Places where a language model that sees pictures takes its visual tokens: placeholders, decoder layers, rotations.

outer (pictures + ids) -> vision tower -> projector -> features in place of the placeholders -> decoder layers 0..L-1
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lessen.architectures.find import find_parts
from lessen.architectures.parts import Block, Part, Stack
from lessen.errors import InputError, NothingMatchedError

PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


@dataclass(frozen=True)
class VisualHost:
    """A language model with pictures in its sequence."""

    outer: Part
    """The module that puts features in place of placeholders; its forward is given `input_ids`."""
    decoder: Stack
    projector: Part
    placeholders: tuple[int, ...]
    """Ids of picture and video placeholders."""
    turn: Callable[..., Any]
    """The host's own `apply_rotary_pos_emb(query, key, cosine, sine)`; heads are axis 1."""
    merge: int
    """Side of the window of patches that the tower merges into one token (Qwen-VL); 1 elsewhere."""
    gathers: bool
    """Whether tower or projector make one token of several patches, so that the projector sees no grid of patches."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Decoder layers in order."""
        return self.decoder.blocks

    def require_patches(self) -> None:
        """Raise InputError unless the projector is given each picture as one grid of patches, which stays one."""
        config = getattr(self.outer.module, "config", None)
        if self.gathers or hasattr(config, "image_grid_pinpoints"):
            raise InputError(
                f"{type(self.outer.module).__name__} merges or rearranges the patches of a picture itself, so that "
                "there is no one grid before its projector; prune between layers instead"
            )


def find_visual_host(model: nn.Module) -> VisualHost:
    """Return where `model` sees pictures; nothing is changed.

    Raises:
        NothingMatchedError: it is no vision-language model, or its pictures are no tokens of the sequence.
        InputError: its layers attend in a sliding window, their queries and keys cannot be read, or tower, projector
            and decoder have other widths.
    """
    parts = find_parts(model, "vision-language")
    decoder, name = parts.stack, type(model).__name__
    bridge = parts.projections.get("projector")
    if bridge is None:
        raise NothingMatchedError(f"{name} has no projector between its vision tower and its language model")
    path = decoder.owner.path.rpartition(".")[0]
    outer = Part(path, model.get_submodule(path))
    config = getattr(outer.module, "config", None) or getattr(model, "config", None)
    found = [getattr(config, key, None) for key in PLACEHOLDERS]
    placeholders = tuple(dict.fromkeys(token for token in found if isinstance(token, int)))
    if not placeholders:
        raise NothingMatchedError(
            f"{name} puts no placeholder of pictures into its sequence (its configuration names none of "
            f"{', '.join(PLACEHOLDERS)}), so there are no visual tokens to leave out"
        )
    vision = getattr(config, "vision_config", None)
    merge = getattr(vision, "spatial_merge_size", 1) or 1
    layers = getattr(config, "vision_feature_layer", None)
    levels = len(layers) if isinstance(layers, (list, tuple)) else 1
    gathers = _wider(bridge, vision, decoder, name) > levels or merge > 1
    return VisualHost(outer, decoder, bridge, placeholders, _rotation(decoder, name), int(merge), gathers)


def _wider(bridge: Part, vision: Any, decoder: Stack, name: str) -> int:
    """Return how many times as wide as the tower's features is what the projector takes.

    Raises:
        InputError: it takes another width than the tower gives, or gives another than the decoder reads.
    """
    linears = [module for module in bridge.module.modules() if isinstance(module, nn.Linear)]
    seen = getattr(vision, "embed_dim", None) or getattr(vision, "hidden_size", None)
    if not linears:
        return 1
    taken, given = linears[0].in_features, linears[-1].out_features
    if isinstance(seen, int) and taken % seen:
        raise InputError(
            f"{name}: {bridge.path} takes features of width {taken} and its vision tower gives {seen}; load a tower "
            "and a projector that belong together"
        )
    if given != decoder.width:
        raise InputError(
            f"{name}: {bridge.path} gives visual tokens of width {given} and {decoder.path} reads {decoder.width}; "
            "load a projector and a language model that belong together"
        )
    return taken // seen if isinstance(seen, int) else 1


def _rotation(decoder: Stack, name: str) -> Callable[..., Any]:
    kinds = getattr(getattr(decoder.owner.module, "config", None), "layer_types", None) or []
    if any(kind != "full_attention" for kind in kinds):
        raise InputError(
            f"{name}: layers of {decoder.path} are {', '.join(sorted(set(kinds)))}; tokens can be left out only where "
            "every layer attends to all of them"
        )
    for block in decoder.blocks:
        attention = block.attention
        if attention is None or attention.fused or block.norms.before_attention is None:
            raise InputError(f"{name}: queries and keys of {block.path} cannot be read one by one before attention")
    attention = decoder.blocks[0].attention
    assert attention is not None  # the loop above has seen it
    turn = getattr(sys.modules[type(attention.module).__module__], "apply_rotary_pos_emb", None)
    if turn is None:
        raise InputError(f"{name}: {attention.path} has no rotary positions, which this reduction carries along")
    return turn  # type: ignore[no-any-return]
