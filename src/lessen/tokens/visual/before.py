"""DeCo (arXiv 2405.20985) between vision tower and projector: fewer visual tokens reach the language model.

tower [P, h*w, D] -> average windows [P, m_h*m_w, D] -> projector -> one feature for each placeholder
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.visual_host import VisualHost, find_visual_host
from lessen.errors import InputError
from lessen.tokens.pooling import pool_features
from lessen.tokens.visual.later import Prompts, Shortened, cache_of, held_by, words_after
from lessen.tokens.visual.pictures import (
    Grid,
    find_placeholders,
    given_to,
    real_tokens,
    require_both,
    require_fit,
    require_pictures,
    runs_of,
)

POOL_MARK = "_lessen_picture_pooling"
LEADING = 5
"""Class and register tokens that a tower puts before its patches, at most."""


@dataclass
class PoolPatch:
    """Pooling that is in place in a model."""

    model: nn.Module
    host: VisualHost
    grid: Grid
    """Patches that the tower gives the projector."""
    target: Grid
    handles: list[Any] = field(default_factory=list, repr=False)
    prompts: Prompts = field(default_factory=Prompts, repr=False)

    @property
    def tokens(self) -> int:
        """Placeholders that each picture needs now."""
        return self.target[0] * self.target[1]

    def fit(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return inputs whose placeholders fit the pooled pictures, from those that the host's processor made.

        Args:
            inputs: `input_ids` [B,N] and `attention_mask` [B,N], padded on the left; all else is passed on.

        Raises:
            InputError: a run of placeholders is no whole number of unpooled pictures.
        """
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        visual, whole = find_placeholders(ids, self.host.placeholders), self.grid[0] * self.grid[1]
        rows = []
        for line, real, shown in zip(ids, mask.bool(), visual, strict=True):
            stays = real.clone()
            for start, length in runs_of((shown & real).cpu()):
                if length % whole:
                    raise InputError(
                        f"{length} picture placeholders in a row are no whole number of pictures of {whole} tokens; "
                        "give the inputs as the processor made them, once"
                    )
                for first in range(start, start + length, whole):
                    stays[first + self.tokens : first + whole] = False
            rows.append(line[stays])
        longest, pad = max(map(len, rows)), _padding(self.model)
        fitted = [torch.cat([line.new_full((longest - len(line),), pad), line]) for line in rows]
        seen = [torch.arange(longest, device=ids.device) >= longest - len(line) for line in rows]
        return {**inputs, "input_ids": torch.stack(fitted), "attention_mask": torch.stack(seen).to(mask.dtype)}

    def remove(self) -> None:
        """Undo the patch: the model is what it was before."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        if self.model.__dict__.get(POOL_MARK) is self:
            del self.model.__dict__[POOL_MARK]


def pool_pictures(model: nn.Module, target: Grid, grid: Grid | None = None) -> PoolPatch:
    """Average the patches of each picture to a `target` grid before the projector of `model`, in place.

    Prompts stay as the host's processor makes them: in every forward and in `generate` a picture's placeholders become
    fewer (`PoolPatch.fit` shows how), masks and positions with them.

    Windows overlap where the target does not divide the grid, as adaptive pooling's do. Nothing is trained; the paper
    trains the projector with the pooling in place, so that more is lost here than there.

    Args:
        grid: rows and columns that reach the projector; None: the square that the vision configuration says.

    Raises:
        NothingMatchedError: `model` sees no pictures as tokens.
        InputError: already patched, no known grid, a larger target, or a host that merges or rearranges patches itself.
    """
    if POOL_MARK in model.__dict__:
        raise InputError("pictures of this model are already pooled; call remove() on its patch first")
    host = find_visual_host(model)
    host.require_patches()
    grid = grid or picture_grid(host)
    if not all(1 <= small <= large for small, large in zip(target, grid, strict=True)):
        raise InputError(f"cannot pool a {grid[0]}x{grid[1]} grid to {target[0]}x{target[1]}: choose a smaller grid")
    patch = PoolPatch(model, host, grid, target)
    patch.handles = [
        model.register_forward_pre_hook(_Whole(patch), with_kwargs=True),
        host.outer.module.register_forward_pre_hook(_Fits(patch), with_kwargs=True),
        host.outer.module.register_forward_hook(_Remember(patch), always_call=True),
        host.projector.module.register_forward_pre_hook(_Pool(patch)),
    ]
    model.__dict__[POOL_MARK] = patch
    return patch


@dataclass
class _Fits:
    patch: PoolPatch

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        given = given_to(module, arguments, keywords)
        cache = cache_of(given)
        if cache is not None and cache.get_seq_length() > 0:
            held = held_by(cache)
            changed = None if held is None else words_after(held, given, cache.get_seq_length(), "pooled")
        else:
            held_by(cache)
            changed = _fitted(self.patch, given)
        return None if changed is None else ((), changed)


@dataclass
class _Remember:
    patch: PoolPatch

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.patch.prompts.end(output)


def _fitted(patch: PoolPatch, given: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a prompt becomes whose placeholders are those of whole pictures; None where they fit already."""
    ids, pixels = given.get("input_ids"), given.get("pixel_values")
    encoded = (given.get("mm_encoder_outputs") or {}).get("image")
    if ids is None:
        return None
    found, whole = int(find_placeholders(ids, patch.host.placeholders).sum()), patch.grid[0] * patch.grid[1]
    require_both(found, pixels is not None or (bool(found) and encoded is not None))
    if not found:
        return None
    real_tokens(ids, given.get("attention_mask"), "pictures become fewer tokens")
    if encoded is None:
        require_pictures(pixels)
    seen = pixels if isinstance(pixels, Tensor) else getattr(encoded, "pooler_output", None)
    if isinstance(seen, (list, tuple)) and not seen:
        raise InputError(
            "beam search shares pictures out by their placeholders before they are pooled; hand it patch.fit(inputs)"
        )
    pictures = len(seen) if isinstance(seen, (Tensor, list, tuple)) else found // whole
    if pictures and found % pictures == 0 and 0 < found // pictures - whole <= LEADING:
        raise InputError(
            f"{found // pictures} placeholders a picture are no grid of {patch.grid[0]}x{patch.grid[1]}: class or "
            "register tokens among them have no place in it; let the host leave them out, or give another grid"
        )
    if patch.grid == patch.target or found != pictures * whole:
        require_fit(found, [whole if 2 * found > pictures * (whole + patch.tokens) else patch.tokens] * pictures)
        return None
    changed = patch.fit(given)
    kept, full = changed["attention_mask"], ids.shape[1]
    if given.get("position_ids") is not None:
        changed["position_ids"] = (kept.cumsum(1) - 1).clamp_min(0)
    mask = given.get("attention_mask")
    before = torch.full_like(ids[:, 0], full) if mask is None else mask.sum(1)
    patch.prompts.begin(Shortened(kept, full, before - kept.sum(1)))
    return changed


@dataclass
class _Whole:
    patch: PoolPatch

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if given_to(module, arguments, keywords).get("labels") is not None and self.patch.grid != self.patch.target:
            raise InputError(
                "labels were given for prompts whose pictures become fewer tokens; take the loss of the last logits, "
                "where the words after the pictures stand as before"
            )


@dataclass
class _Pool:
    patch: PoolPatch

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        features: Tensor = inputs[0]
        if self.patch.grid == self.patch.target:
            return inputs
        return (pool_features(features, self.patch.grid, self.patch.target), *inputs[1:])


def picture_grid(host: VisualHost, rows: int | None = None) -> Grid:
    """Return rows and columns of patches that the vision configuration says: a square, or `rows` of as many patches.

    Raises:
        InputError: the configuration says nothing of them, or the patches make no such rows.
    """
    vision = getattr(getattr(host.outer.module, "config", None), "vision_config", None)
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if not isinstance(size, int) or not isinstance(patch, int):
        raise InputError("the vision configuration names no image_size and patch_size; give the grid of patches")
    side = size // patch
    if rows is None:
        return side, side
    if side * side % rows:
        raise InputError(f"{side * side} patches are no grid of {rows} rows")
    return rows, side * side // rows


def _padding(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    own = [getattr(one, "pad_token_id", None) for one in (config, getattr(config, "text_config", None))]
    return next((token for token in own if isinstance(token, int) and token >= 0), 0)
