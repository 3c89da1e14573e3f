"""Leave visual tokens out between the layers of a language model, by hooks that come out again.

layer K-1: the last token's attention row over the picture is asked      (one query row, n keys)
layer K:   tokens [B,N,C] -> [B,M,C]; positions, rotations and mask with them, for this layer and all later ones
cache:     layers before K hold N tokens, later ones M; new tokens go on at position N
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lessen.architectures.visual_host import VisualHost, find_visual_host
from lessen.errors import InputError
from lessen.tokens.scores import random_scores
from lessen.tokens.visual.choose import best, determinant, even, on_grid, to_unit
from lessen.tokens.visual.kept import Kept, narrowed
from lessen.tokens.visual.later import cache_of
from lessen.tokens.visual.pictures import (
    Layout,
    Picture,
    find_placeholders,
    given_to,
    read_layout,
    require_both,
    require_fit,
    shapes_of,
)
from lessen.tokens.visual.plan import Stage, VisualPruning
from lessen.tokens.visual.row import last_row, mean_attention

MARK = "_lessen_visual_patch"
RECORD = "_lessen_kept"
"""What was left at each layer, beside the keys and values in the host's own cache."""
PIXELS = ("pixel_values", "pixel_values_videos")


@dataclass
class Call:
    """One forward of the host."""

    layout: Layout | None = None
    """Of a prompt with pictures; None of later tokens and of text alone."""
    kept: dict[int, Kept] = field(default_factory=dict)
    """What entered each layer from the first stage on, as far as tokens were left out."""
    logits: list[Tensor] | None = None
    """Attention rows that the next stage chooses by."""
    counted: int | None = None
    """Placeholders of the batch while the tower has not told how many features it makes."""


@dataclass
class VisualPatch:
    """A pruning that is in place in a model."""

    model: nn.Module
    host: VisualHost
    pruning: VisualPruning
    last: Call = field(default_factory=Call)
    """The last prompt with pictures."""
    handles: list[Any] = field(default_factory=list, repr=False)
    running: dict[int, Call] = field(default_factory=dict, repr=False)
    """Calls under way by thread; a plain dictionary, so that a copied model stays patched."""

    def tokens(self) -> list[int]:
        """Return how many tokens entered each layer for the last prompt, filling included (what a cache holds)."""
        layout, depth = self.last.layout, len(self.host.blocks)
        if layout is None:
            return []
        full = layout.real.shape[1]
        return [self.last.kept[i].columns.shape[1] if i in self.last.kept else full for i in range(depth)]

    def remove(self) -> None:
        """Undo the patch: the model is what it was before."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        if self.model.__dict__.get(MARK) is self:
            del self.model.__dict__[MARK]

    @property
    def call(self) -> Call:
        """The call of this thread, an empty one outside the host's forward."""
        return self.running.get(threading.get_ident()) or Call()


def prune_visual_tokens(model: nn.Module, pruning: VisualPruning) -> VisualPatch:
    """Leave visual tokens out of `model`, in place, while a prompt is read; later tokens see what is left.

    Logits of a prompt are those of the tokens that are left (`patch.last.kept` says which); the last one always is.
    Every call starts anew and chooses again without a cache.

    Raises:
        NothingMatchedError: `model` sees no pictures as tokens.
        InputError: already patched, a stage beyond the decoder, or layers that cannot follow.
    """
    if MARK in model.__dict__:
        raise InputError("visual tokens of this model are already pruned; call remove() on its patch first")
    host = find_visual_host(model)
    pruning.check_depth(len(host.blocks), host.decoder.path)
    patch = VisualPatch(model, host, pruning)
    outer = host.outer.module
    patch.handles = [
        model.register_forward_pre_hook(_refuse_labels, with_kwargs=True),
        outer.register_forward_pre_hook(_Begin(patch), with_kwargs=True),
        outer.register_forward_hook(_End(patch), always_call=True),
        host.projector.module.register_forward_hook(_Features(patch)),
    ]
    for block in host.blocks[min(stage.layer for stage in pruning.stages) - 1 :]:
        patch.handles.append(block.module.register_forward_pre_hook(_Layer(patch, block.index), with_kwargs=True))
    model.__dict__[MARK] = patch
    return patch


# -- hooks are objects, so that a copied model has its own ----------------------------------------------------------
def _refuse_labels(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    if given_to(module, arguments, keywords).get("labels") is not None:
        raise InputError("labels were given, and logits of left-out tokens do not exist; train without the patch")


@dataclass
class _Begin:
    patch: VisualPatch

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.patch.running[threading.get_ident()] = _begin(self.patch.host, given_to(module, arguments, keywords))


@dataclass
class _End:
    patch: VisualPatch

    def __call__(self, *_: Any) -> None:
        call = self.patch.running.pop(threading.get_ident(), None)
        if call is not None and call.layout is not None:
            self.patch.last = call


@dataclass
class _Features:
    patch: VisualPatch

    def __call__(self, _module: nn.Module, _inputs: Any, features: Any) -> None:
        counted = self.patch.call.counted
        if counted is not None and isinstance(features, Tensor) and features.dim() == 3:
            require_fit(counted, [features.shape[1]] * len(features))


@dataclass
class _Layer:
    patch: VisualPatch
    index: int

    def __call__(self, _module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        hidden = arguments[0] if arguments else keywords["hidden_states"]
        after = enter(self.patch, self.index, hidden, keywords)
        if after is None:
            return None
        hidden, changed = after
        if arguments:
            return (hidden, *arguments[1:]), keywords | changed
        return arguments, keywords | changed | {"hidden_states": hidden}


def _begin(host: VisualHost, given: Mapping[str, Any]) -> Call:
    cache = cache_of(given)
    if cache is not None and cache.get_seq_length() > 0:
        return Call()
    if cache is not None:
        cache.__dict__.pop(RECORD, None)  # of a prompt before it was emptied
    ids = given.get("input_ids")
    pictured = any(given.get(name) is not None for name in PIXELS)
    if ids is None:
        if pictured:
            raise InputError("pictures were given with inputs_embeds, which do not say where they are; give input_ids")
        return Call()
    found = int(find_placeholders(ids, host.placeholders).sum())
    require_both(found, pictured or (bool(found) and bool(given.get("mm_encoder_outputs"))))
    if not found:
        return Call()
    if pictured and not any(map(_some, (given.get(name) for name in PIXELS))):
        raise InputError(f"the prompts hold {found} picture placeholders and the pictures make 0; give every picture")
    if getattr(cache, "is_compileable", False):
        raise InputError(f"a {type(cache).__name__} has one length for all layers; use the dynamic cache")
    shapes = shapes_of(given, found, host.merge)
    layout = read_layout(ids, given.get("attention_mask"), host.placeholders, shapes)
    pixels = given.get("pixel_values")
    return Call(layout, counted=found if isinstance(pixels, Tensor) and pixels.dim() == 4 else None)


def _some(pixels: Any) -> bool:
    return bool(pixels.numel() if isinstance(pixels, Tensor) else pixels)


# -- one layer ------------------------------------------------------------------------------------------------------
def enter(
    patch: VisualPatch, index: int, hidden: Tensor, keywords: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]] | None:
    """Return what layer `index` is handed in place of `hidden` [B,N,C] and `keywords`; None where nothing changes.

    Raises:
        InputError: a picture has fewer tokens than a stage keeps, or the cache belongs to another batch.
    """
    call, cache = patch.call, cache_of(keywords)
    if call.layout is None:
        kept = (getattr(cache, RECORD, None) or {}).get(index)
        return None if kept is None else (hidden, _later(kept, hidden, cache, keywords))
    stage = next((stage for stage in patch.pruning.stages if stage.layer == index), None)
    before = call.kept.get(index - 1)
    kept = before
    if stage is not None:
        with torch.no_grad():
            kept = _choose(patch.pruning, stage, call, call.layout, before, hidden)
        if kept is not None and kept is not before:
            hidden = _narrow(hidden, before, kept)
    changed = {} if kept is None else _prompt(kept, keywords)
    if kept is not None:
        call.kept[index] = kept
        if cache is not None:
            cache.__dict__.setdefault(RECORD, {})[index] = kept
    if patch.pruning.scored and any(stage.layer == index + 1 for stage in patch.pruning.stages):
        where = _visual(call.layout, kept)
        tables = changed.get("position_embeddings", keywords.get("position_embeddings")) if patch.pruning.rope else None
        with torch.no_grad():
            call.logits = last_row(patch.host, patch.host.blocks[index], hidden, where, tables)
    return None if kept is None else (hidden, changed)


def _prompt(kept: Kept, keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "position_embeddings": kept.tables(keywords["position_embeddings"]),
        "position_ids": kept.positions(keywords.get("position_ids")),
        "attention_mask": kept.prefill_mask(_readable(keywords.get("attention_mask"))),
    }


def _later(kept: Kept, hidden: Tensor, cache: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    if len(hidden) != len(kept.columns):
        raise InputError(
            f"a cache of {len(kept.columns)} pruned prompts was handed a batch of {len(hidden)}; use each with its own"
        )
    mask, queries = _readable(keywords.get("attention_mask")), hidden.shape[1]
    # layer 0 holds every token and has taken this call's in already
    return {"attention_mask": kept.later_mask(mask, queries, cache.get_seq_length())}


def _readable(mask: Any) -> Tensor | None:
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == 4):
        return mask
    raise InputError(
        f"the attention implementation takes a {type(mask).__name__} as mask, which cannot be cut to the tokens left; "
        'load the model with attn_implementation="sdpa" or "eager"'
    )


# -- one stage ------------------------------------------------------------------------------------------------------
def _columns(layout: Layout, kept: Kept | None) -> tuple[Tensor, Tensor]:
    """Return columns of the prompt [B,M] and which of them are real."""
    if kept is not None:
        return kept.columns, kept.real
    batch, full = layout.real.shape
    return torch.arange(full, device=layout.real.device).expand(batch, -1), layout.real


def _inside(picture: Picture, columns: Tensor, real: Tensor) -> Tensor:
    own = columns[picture.row]
    return (own >= picture.start) & (own < picture.start + picture.tokens) & real[picture.row]


def _visual(layout: Layout, kept: Kept | None) -> Tensor:
    columns, real = _columns(layout, kept)
    where = torch.zeros_like(real)
    for picture in layout.pictures:
        where[picture.row] |= _inside(picture, columns, real)
    return where


def _choose(
    pruning: VisualPruning, stage: Stage, call: Call, layout: Layout, before: Kept | None, hidden: Tensor
) -> Kept | None:
    """Return what is left from this stage on; `before` itself where the stage leaves nothing out."""
    columns, real = _columns(layout, before)
    stays = real.clone()
    seen = [0] * len(columns)
    for picture in layout.pictures:
        row = picture.row
        places = _inside(picture, columns, real).nonzero()[:, 0]
        cells = columns[row, places] - picture.start
        logits = None
        if call.logits is not None:  # rows hold the pictures of a prompt one after another
            logits = call.logits[row][:, seen[row] : seen[row] + len(places)]
            seen[row] += len(places)
        chosen = _pick(pruning, stage, picture, cells, logits, hidden[row, places])
        stays[row, places] = False
        stays[row, places[chosen]] = True
    if torch.equal(stays, real):
        return before
    start = before or Kept(columns, real, columns.shape[1])
    return narrowed(start, [line.nonzero()[:, 0] for line in stays])


def _pick(
    pruning: VisualPruning, stage: Stage, picture: Picture, cells: Tensor, logits: Tensor | None, hidden: Tensor
) -> Tensor:
    """Return the places kept among the tokens of one picture."""
    n = len(cells)
    keep = stage.keep(n)
    if keep >= n:
        return torch.arange(n, device=cells.device)
    if pruning.choice == "uniform":
        chosen = even(n, keep).to(cells.device)
    elif pruning.choice == "random":
        noise = random_scores(1, picture.tokens, pruning.seed, stage.layer)[0].to(cells.device)
        chosen = best(noise[cells], keep)
    else:
        assert logits is not None  # asked at the layer before
        scores = mean_attention(logits)
        chosen = best(scores, keep) if pruning.choice == "attention" else determinant(hidden, to_unit(scores), keep)
    if stage.stride:
        both = torch.cat([chosen.to(cells.device), on_grid(cells, picture.grid, stage.stride)])
        chosen = torch.unique(both)
    return chosen.to(cells.device)


def _narrow(hidden: Tensor, before: Kept | None, kept: Kept) -> Tensor:
    """Return the kept tokens of what `before` left of the prompt."""
    if before is None:
        return kept.gather(hidden)
    places = torch.full((len(hidden), before.full), -1, device=hidden.device)
    places.scatter_(1, before.columns, torch.arange(hidden.shape[1], device=hidden.device).expand(len(hidden), -1))
    return Kept(places.gather(1, kept.columns), kept.real, kept.full).gather(hidden)
